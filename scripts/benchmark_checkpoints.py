"""What checkpoints cost: time spent writing them, the best model included, as a share of the run's training time.

One run at d ≈ 5,000 parameters and a full history, with the default interval. The result depends on the file system:
point --logdir to the disk of interest.
"""

from __future__ import annotations

import argparse
import tempfile

import torch

from optex_rl import TrainConfig, train


def main() -> None:
    """Parse the flags, train, and print the share."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--iterations", type=int, default=500)
    parser.add_argument("--net-arch", type=int, nargs="+", default=[46, 46])
    parser.add_argument("--checkpoint-freq", type=int, default=TrainConfig().checkpoint_freq)
    parser.add_argument("--logdir", help="where the run is written, then removed (default: the system's)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=options.logdir) as logdir:
        config = TrainConfig(
            logdir=logdir,
            iterations=options.iterations,
            net_arch=tuple(options.net_arch),
            checkpoint_freq=options.checkpoint_freq,
            progress_bar=False,
        )
        result = train(config)
        assert result.run_dir is not None
        size = (result.run_dir / "checkpoint.pt").stat().st_size
    d, total = sum(p.numel() for p in result.policy.parameters()), result.rows[-1]["time/wall_time"]
    sizes = f"d = {d:,}, T0 = {config.optex_options().history_size}, N = {config.parallelism}"
    print(f"{sizes}: {config.iterations} iterations in {total:.1f} s")
    print(f"a checkpoint of {size / 1e6:.2f} MB every {config.checkpoint_freq} iterations and at both ends")
    print(f"share of the training time: {result.saving:.2f} s, {result.saving / total:.2%}")


if __name__ == "__main__":
    main()
