"""FID and CLIP score through torchmetrics, with small stand-ins for the networks that cannot be fetched here."""

import pytest
import torch
from scipy import linalg
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel

from reference.__main__ import main
from reference.bench import image_metrics


class Means(nn.Module):
    """The mean of each colour: three features."""

    num_features = 3

    def forward(self, x: Tensor) -> Tensor:
        return x.double().flatten(2).mean(2) / 255


def pictures(seed: int, n: int = 40, brightness: float = 1.0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    colours = torch.rand(n, 3, 1, 1, generator=g) * brightness
    return (colours * torch.rand(n, 3, 8, 8, generator=g) * 255).byte()


def test_fid_is_the_distance_of_gaussians_fitted_to_the_features():
    x, y = pictures(0), pictures(1, brightness=0.5)
    f, g = (Means()(z) for z in (x, y))
    c_f, c_g = torch.cov(f.T), torch.cov(g.T)
    root = linalg.sqrtm((c_f @ c_g).numpy()).real
    expected = (f.mean(0) - g.mean(0)).square().sum() + torch.trace(c_f) + torch.trace(c_g) - 2 * root.trace()
    assert image_metrics.fid(x, y, Means()) == pytest.approx(float(expected), rel=1e-4)
    assert image_metrics.fid(x, x, Means()) == pytest.approx(0, abs=1e-6)
    assert image_metrics.fid(x, y, Means()) > 10 * image_metrics.fid(x, pictures(2), Means())


def test_without_torch_fidelity_one_line_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr("torchmetrics.image.fid._TORCH_FIDELITY_AVAILABLE", False)
    with pytest.raises(ValueError, match=r"needs torch-fidelity: pip install 'awesome-diffusion-pruning\[metrics\]'"):
        image_metrics.fid(pictures(0), pictures(1))


class Processor:
    """Pictures at the size that the model takes; a prompt is the tokens of its letters."""

    def __call__(self, text=None, images=None, **_) -> dict:
        found = {}
        if images is not None:
            found["pixel_values"] = torch.stack([image.float() / 255 for image in images])
        if text is not None:
            rows = [[ord(letter) % 50 for letter in prompt][:8] for prompt in text]
            found["input_ids"] = torch.tensor([row + [1] * (8 - len(row)) for row in rows])
            found["attention_mask"] = torch.ones_like(found["input_ids"])
        return found


def clip() -> tuple[CLIPModel, Processor]:
    torch.manual_seed(3)
    text = {"vocab_size": 60, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    text |= {"num_attention_heads": 2, "max_position_embeddings": 8}
    vision = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision |= {"image_size": 8, "patch_size": 4}
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)).eval(), Processor()


def test_the_clip_score_is_the_cosine_of_picture_and_prompt():
    model, processor = clip()
    x, prompts = pictures(0, n=3), ["red heart", "pig", "moon"]
    scores = image_metrics.clip_scores(x, prompts, lambda: (model, processor))
    told = processor(text=prompts, images=list(x))
    with torch.no_grad():
        f = model.visual_projection(model.vision_model(told["pixel_values"]).pooler_output)
        g = model.text_projection(model.text_model(told["input_ids"]).pooler_output)
    assert torch.allclose(scores, 100 * torch.cosine_similarity(f, g).clamp(min=0), atol=1e-3)
    assert scores.max() > 1
    assert scores.std() > 0
    by_one = [image_metrics.clip_scores(x[i : i + 1], prompts[i : i + 1], lambda: (model, processor)) for i in (0, 2)]
    assert torch.allclose(torch.cat(by_one), scores[[0, 2]], atol=1e-4)


def test_the_report_compares_pair_by_pair(monkeypatch):
    monkeypatch.setattr(image_metrics, "fid", lambda pruned, dense: 1.25)
    monkeypatch.setattr(image_metrics, "clip_scores", lambda x, prompts: x.flatten(1).double().mean(1))
    dense = torch.full((4, 3, 8, 8), 20, dtype=torch.uint8)
    lines = image_metrics.report(["fid", "clip"], dense, dense - 5, ["a"] * 4)
    assert lines == [
        "FID of the pruned pictures to the dense ones: 1.250, n = 4 each",
        "CLIP score, dense: 20.00 (20.00 to 20.00), n = 4",
        "CLIP score, pruned: 15.00 (15.00 to 15.00), n = 4",
        "CLIP score, pruned minus dense: -5.00 (-5.00 to -5.00), n = 4",
    ]


def test_an_unknown_metric_is_refused_before_anything_is_loaded(tmp_path, capsys):
    assert main(["compare", "openmoji-mmdit", str(tmp_path / "none"), "--metrics", "fid,lpips"]) == 2
    assert capsys.readouterr().err.strip() == "error: --metrics knows fid and clip, not 'lpips'"
