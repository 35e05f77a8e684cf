"""The fields of `metrics.json` that say what was evaluated, where, and by which code."""

from __future__ import annotations

from podium.trainer.allocation import count_parameters
from podium.trainer.data.manifest import TRAIN
from podium.trainer.evaluation.metrics import Metrics, forward_flops_per_token
from podium.trainer.evaluation.subject import Subject
from podium.trainer.extension import measured_counts
from podium.trainer.storage import sha256_of
from podium.trainer.versions import versions


def put_identity(metrics: Metrics, subject: Subject) -> None:
    """Checkpoint, sizes by part, training, data, device and versions."""
    config, about, manifest = subject.config, subject.about, subject.manifest
    model = config.model
    counts = count_parameters(model) if config.extension is None else measured_counts(subject.model)
    d_model, n_layers, n_heads, d_ff = model.dimensions
    length = config.data.sequence_length
    metrics.put("format_version", 1)
    metrics.put("checkpoint", subject.located.uri)
    metrics.put("checkpoint_sha256", sha256_of(subject.located.path))
    metrics.put("run", subject.located.run, "the weights do not lie in a run's folder")
    metrics.put_all({name: about[name] for name in ("step", "preset", "mode")})
    metrics.put_all(
        {
            "parameters_total": counts.total,
            "parameters_embedding": counts.embedding,
            "parameters_attention": counts.attention,
            "parameters_feed_forward": counts.feed_forward,
            "parameters_norm": counts.norm,
            "parameters_output": counts.output,
            "parameters_non_embedding": counts.total - counts.embedding - counts.output,
            "embedding_share": (counts.embedding + counts.output) / counts.total,
            "glu_expansion": d_ff / d_model,
            "d_model": d_model,
            "n_layers": n_layers,
            "n_heads": n_heads,
            "head_size": d_model // n_heads,
            "d_ff": d_ff,
            "vocab_size": model.vocab_size,
            "tied_embeddings": model.tied_embeddings,
            "sequence_length": length,
            "forward_flops_per_token": forward_flops_per_token(counts, model.vocab_size, d_model, n_layers, length),
            "weights_mb": sum(p.numel() * p.element_size() for p in subject.model.parameters()) / 1e6,
            "checkpoint_mb": subject.located.path.stat().st_size / 1e6,
        }
    )
    tokens = about["metrics_summary"].get("tokens")
    metrics.put("training_tokens", tokens, "the checkpoint does not say")
    train = manifest.splits[TRAIN].tokens if manifest else None
    metrics.put("training_passes", tokens / train if tokens and train else None, "no dataset was read")
    metrics.put("training_val_loss", about["metrics_summary"].get("val_loss"), "not evaluated at this step in training")
    for name, value in (
        ("data_fingerprint", manifest.fingerprint if manifest else None),
        ("corpus", manifest.corpus if manifest else None),
        ("tokenizer_sha256", manifest.tokenizer_sha256 if manifest else None),
    ):
        metrics.put(name, value, "the dataset has no tokenizer" if manifest else "no dataset was read")
    ran = versions(subject.device, 1)
    metrics.put("device", subject.device.type)
    metrics.put("device_name", ran.device, "unknown")
    metrics.put("dtype", str(subject.dtype).removeprefix("torch."))
    metrics.put("threads", ran.threads, "unknown")
    metrics.put("cuda_version", ran.cuda, f"the device is {subject.device.type}")
    metrics.put("torch_version", ran.torch, "unknown")
    metrics.put("python_version", ran.python, "unknown")
    metrics.put("podium_version", ran.podium)
    metrics.put("commit", ran.commit, "no checkout, and PODIUM_COMMIT is not set")
    metrics.put("image", ran.image, "PODIUM_IMAGE is not set")
