"""Kinds of corpora, found by their modules: a new kind is one file with a `CorpusKind` here."""
