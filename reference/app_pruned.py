"""Draw with a pruned model: `python -m reference.app_pruned --pruning_amount 0.5 --prompt "..." --precision fp8`."""

import argparse
import sys
import warnings
from pathlib import Path


def main(arguments: list[str] | None = None) -> int:
    """Load, prune, quantise, draw, save; 0 if it worked, 2 with one line on stderr if the input is wrong."""
    parser = argparse.ArgumentParser(prog="python -m reference.app_pruned", description=__doc__)
    parser.add_argument("--pruning_amount", type=float, default=0.3, help="fraction to remove (0.3)")
    parser.add_argument("--prompt", default="smiling face with sunglasses")
    parser.add_argument("--precision", default="bf16", help="bf16, fp16, fp8, fp8-storage or fp8-compute")
    parser.add_argument("--steps", type=int, default=50, help="denoising steps (50)")
    parser.add_argument(
        "--method", default="magnitude", help="magnitude, structured, iterative, head, 2:4, depth or a criterion"
    )
    parser.add_argument(
        "--model_path", default="openmoji-mmdit", help="openmoji-mmdit, a folder, a hub id, a file, or org/name/file"
    )
    parser.add_argument("--base_model", help="the pipeline around a file that holds only the denoiser")
    parser.add_argument("--seed", type=int, default=0, help="of the noise")
    parser.add_argument("--output", type=Path, default=Path("pruned_image.png"), help="picture to write")
    options = parser.parse_args(arguments)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore")
        warnings.filterwarnings("default", module="reference")
        warnings.showwarning = lambda message, *_, **__: print(f"note: {message}", file=sys.stderr)
        try:
            run(options)
        except (ValueError, OSError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
    return 0


def run(options: argparse.Namespace) -> None:
    """The work of `main`. Criteria that look at data are calibrated on the prompt."""
    if options.steps < 1:
        raise ValueError(f"--steps is a whole number from 1 on, not {options.steps}")
    import torch

    from reference.pictures import check_name, save
    from reference.pruning import create_pruned_pipeline

    check_name(options.output)
    pipeline = create_pruned_pipeline(
        options.model_path,
        options.pruning_amount,
        options.method,
        options.base_model,
        calibration=[options.prompt],
        precision=options.precision,
    )
    for report in pipeline.pruning_reports:
        print(report)
    print(pipeline.precision_note)
    if torch.cuda.is_available():
        pipeline.to("cuda")
    generator = torch.Generator().manual_seed(options.seed)
    image = pipeline(options.prompt, num_inference_steps=options.steps, generator=generator).images[0]
    save(image, options.output)
    print(f"saved {options.output}")


if __name__ == "__main__":
    sys.exit(main())
