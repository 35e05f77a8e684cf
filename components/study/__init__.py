"""A study as data: its schema, design, seeds, cost, identity, its layout in the store and its ledger."""
