"""MergeQuant's stages: static steps, migrated where there is something to migrate them into."""

import torch
from torch import Tensor, nn

from ..nn import StaticInt4Linear
from ..recipes import Recipe
from ..transforms.rotation import OnlineHadamard
from .choice import quantize_weights
from .gptq import Hessian
from .rtn import activation_clip_search
from .stages import CHUNK_TOKENS, CLIP_GRID, Stage, activation_grid, fake_quantize
from .static import (
    CODES,
    StaticInput,
    dither,
    gather_index,
    low_rank,
    output_error,
    refit,
    search_steps,
    split_channels,
)

_SEARCH_TOKENS = 1024  # tokens that steps are searched on
INVARIANCE = 1e-8  # of the outputs' range, in fp64


class _Moments:
    """Of what is rounded, v, and of the codes, q: their means [K], and around them the Hessian and E[v q^T].

    Around the means, since the bias makes up for what rounding does to them.
    """

    def __init__(self, k: int, device: torch.device, quantized: bool):
        self.quantized = quantized
        self.hessian, self.cross = Hessian(k, device), torch.zeros(k, k, device=device)
        self.mean = torch.zeros(k, dtype=torch.float64, device=device)
        self.mean_codes = torch.zeros_like(self.mean)

    def add(self, static: StaticInput, y: Tensor) -> None:
        """y: fp32 [T, K]."""
        v = static.exact(y)
        q = v.clone().clamp_(*CODES[static.bits]).round_()
        self.mean += v.sum(0, dtype=torch.float64)
        self.mean_codes += q.sum(0, dtype=torch.float64)
        self.hessian.add(q if self.quantized else v)
        if self.quantized:
            self.cross.addmm_(v.T, q)

    def centre(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(mean of v, mean of q, Hessian, cross Hessian), the Hessian that of the codes or of v as added."""
        tokens = self.hessian.tokens
        v, q = self.mean / tokens, self.mean_codes / tokens
        seen = q if self.quantized else v
        hessian = (self.hessian.matrix().double() - 2 * torch.outer(seen, seen)).float()
        hessian.diagonal().clamp_min_(0)
        cross = (self.cross.double() * (2.0 / tokens) - 2 * torch.outer(v, q)).float()
        return v, q, hessian, cross


class StaticStage(Stage):
    """Linears that share an input whose steps are static, or dynamic where that loses less.

    norm: the RMSNorm that gives the input and takes the steps; None where the layer applies them itself.
    names: of the linears, for the report. values: for o_proj, (the stage of v_proj, its place in it, head
    size): v_proj's output channels take the steps, shared by the heads that read one head of values.
    """

    def __init__(
        self, linears: list[nn.Linear], recipe: Recipe, online: OnlineHadamard | None, norm: nn.Module | None,
        names: list[str], values: "tuple[StaticStage, int, int] | None" = None,
    ):
        super().__init__(linears, recipe, online)
        self.norm, self.names, self.values = norm, names, values
        self.inputs: list[Tensor] = []
        self.static: StaticInput | None = None
        self.gain: Tensor | None = None
        self.dtype = linears[0].weight.dtype

    def add(self, x: Tensor) -> None:
        """x: [..., K] inputs of the linears as they come."""
        self.inputs.append(x.detach().reshape(-1, x.shape[-1]).float())

    def finish(self) -> None:
        """Choose steps, fold them, quantise the weights, build the layers that replace the linears."""
        x, self.inputs = torch.cat(self.inputs), []
        y = torch.cat([self._transform_only(part) for part in x.split(CHUNK_TOKENS)])
        weights = torch.cat([linear.weight.detach().float() for linear in self.linears])
        sample = y[:: max(1, y.shape[0] // _SEARCH_TOKENS)]
        static = self._choose(sample, weights)
        entry = {"static": True, "inputs": y.shape[1]}
        entry |= self._errors(static, sample, weights)
        if self._stays_dynamic(entry):
            self.report = [{"layer": name, **entry, "static": False} for name in self.names]
            super().add(x)
            super().finish()
            return
        self.static = static
        self._check(sample[:64].double())
        self._quantize(y, entry)

    def _choose(self, y: Tensor, w: Tensor) -> StaticInput:
        """Steps, shifts and copies for the inputs y [T, K] (a sample) of the weights w [N, K]."""
        recipe, bits = self.recipe, self.recipe.activation_bits
        norm = w.norm(dim=0)
        step, centre, _ = search_steps(y, bits, recipe.mean_shift)
        index = copies = None
        if recipe.split is not None:
            copies = split_channels(step * norm, recipe.split, recipe.split_growth, recipe.prune)
            if bool((copies != 1).any()):
                index = gather_index(copies)
                if recipe.dither:
                    step, centre, _ = search_steps(y, bits, recipe.mean_shift, copies.clamp_min(1))
        step = self._migrated(step.double())
        shift = None
        if recipe.mean_shift:
            shift = centre.double() / step + (0.5 if bits == 4 else 0.0)
            shift = shift if index is None else shift[index]
        if index is not None and recipe.dither:
            shift = dither(copies) if shift is None else shift + dither(copies)
        return StaticInput(step, bits, None if shift is None else shift.float().double(), index)

    def _migrated(self, step: Tensor) -> Tensor:
        """The steps fp64 [K] as they will really act: those of the rounded gain, or of rounded inverses."""
        if self.values is not None:
            stage, place, head = self.values
            groups = step.view(stage.linears[place].out_features // head, -1, head)
            return groups.amax(1, keepdim=True).expand_as(groups).reshape(-1).clone()
        if self.norm is None:
            return 1.0 / (1.0 / step).float().double()
        old = self.norm.weight.detach().double()
        self.gain = (old / step).to(self.dtype)
        new = self.gain.double()
        return torch.where((old == 0) | (new == 0), torch.ones_like(step), old / new)

    def _errors(self, static: StaticInput, y: Tensor, w: Tensor) -> dict:
        """What rounding the inputs statically, and where that is a choice per token, does to the output."""
        copies, exact = static.copies(), static.exact(y.double())
        kept = torch.zeros_like(y)
        if static.index is None:
            kept = (static.codes(y.double()) - exact).float() * static.step.float()
        else:
            e = (static.codes(y.double()) - exact).float() / copies[static.index]
            kept.index_add_(1, static.index, e).mul_(static.step.float())
            gone = copies == 0
            kept[:, gone] = (y.mean(0) - y)[:, gone]
        mean, total = output_error(kept, y, w)
        found = {
            "static_error": mean, "static_energy_error": total, "codes": int(copies.sum()),
            "split": int((copies > 1).sum()), "pruned": int((copies == 0).sum()),
        }  # fmt: skip
        if self.norm is not None:
            return found  # nothing to compare: behind a norm static codes cost nothing at all
        grid = activation_grid(self.recipe)
        moved = y - y.mean(0) if self.recipe.mean_shift else y
        clip = self.recipe.activation_clip or activation_clip_search(moved, w, CLIP_GRID, grid)
        dynamic = output_error(fake_quantize(moved, grid, clip) - moved, y, w)
        return {**found, "dynamic_error": dynamic[0], "dynamic_energy_error": dynamic[1]}

    def _stays_dynamic(self, entry: dict) -> bool:
        if self.norm is not None or self.recipe.static_sites == "all":
            return False
        if self.recipe.static_sites == "norm":
            return True
        worse = (entry[f"static_{kind}"] > entry[f"dynamic_{kind}"] for kind in ("error", "energy_error"))
        return any(worse)

    def _check(self, y: Tensor) -> None:
        """RuntimeError unless gain, gather, shift and folded weight compute what the linears did, in fp64."""
        static = self.static
        if (static.copies() == 0).any():
            return  # pruning is no identity
        for linear in self.linears:
            w = linear.weight.detach()
            before = y @ w.double().T
            v = y * self._ratio() if self.norm is not None else y * (1.0 / static.step)
            v = v if static.index is None else v[:, static.index]
            after = (v if static.shift is None else v - static.shift) @ static.fold(w).T
            after = after if static.shift is None else after + static.bias(w)
            span = float(before.max() - before.min())
            error = float((after - before).abs().max()) / max(span, 1e-300)
            if not error <= INVARIANCE:
                raise RuntimeError(
                    f"migration: expected outputs to move by at most {INVARIANCE:g} of their range in fp64, "
                    f"got {error:.3g} at {self.names[0]}"
                )

    def _ratio(self) -> Tensor:
        """fp64 [K]: what the new gain makes of an input that the old one gave."""
        old, new = self.norm.weight.detach().double(), self.gain.double()
        return torch.where(old == 0, torch.ones_like(new), new / old)

    def _quantize(self, y: Tensor, entry: dict) -> None:
        """Fold, round, compensate, and build the layers for the inputs y [T, K]."""
        static, recipe = self.static, self.recipe
        folded = [static.fold(linear.weight.detach()).float() for linear in self.linears]
        found = _Moments(folded[0].shape[1], y.device, recipe.quantized_calibration)
        for part in y.split(CHUNK_TOKENS):
            found.add(static, part)
        mean, mean_codes, h, cross = found.centre()
        targets = folded
        if recipe.quantized_calibration:
            rows = [w.shape[0] for w in folded]
            all_rows = refit(torch.cat(folded), cross, h, recipe.damp)
            targets = list(all_rows.split(rows))
        quantized = quantize_weights(targets, recipe, h)
        inverse = None if self.norm is not None or self.values is not None else 1.0 / static.step
        inverse = inverse if inverse is None or static.index is None else inverse[static.index]
        mean = mean if static.shift is None else mean + static.shift
        block = None if self.online is None else self.online.block or 0
        self.modules = []
        for linear, w, target, q, name in zip(
            self.linears, folded, targets, quantized, self.names, strict=True
        ):
            extra = self._compensation(target - q.dequantize(), y, h)
            stored = q.dequantize().double()
            if extra is not None:
                stored = stored + (extra[0] @ extra[1]).double()
            # W' (v + shift) on average, whatever the rounding of codes and weights does to the mean
            bias = w.double() @ mean - stored @ mean_codes
            bias = bias if linear.bias is None else bias + linear.bias.double()
            module = StaticInt4Linear.from_weight(
                q, linear.in_features, bias.float(), recipe.activation_bits, block,
                None if static.index is None else static.index.int(), inverse, static.shift, extra,
                linear.weight.dtype,
            )  # fmt: skip
            self.modules.append(module)
            self.report.append({"layer": name, **entry, "rank": module.rank})

    def _compensation(self, error: Tensor, y: Tensor, h: Tensor) -> tuple[Tensor, Tensor] | None:
        """The low-rank part of the weight's error [N, K'], if tokens that it was not fitted to gain by it."""
        if not self.recipe.rank:
            return None
        cut = y.shape[0] - y.shape[0] // 4
        fitted = Hessian(h.shape[0], h.device)
        for part in y[:cut].split(CHUNK_TOKENS):
            fitted.add(self.static.codes(part))
        up, down = low_rank(error, fitted.matrix(), min(self.recipe.rank, *error.shape))
        rest = self.static.codes(y[cut:])
        before, after = rest @ error.T, rest @ (error - up @ down).T
        return (up, down) if float(after.square().sum()) < float(before.square().sum()) else None

    def forward(self, index: int, x: Tensor) -> Tensor:
        """What linear `index` computes now that it is quantised; x as the old gain gave it."""
        if self.static is None:
            return super().forward(index, x)
        module, y = self.modules[index], self._transform_only(x.float())
        v = self.static.codes(y) if self.recipe.quantized_calibration else self.static.exact(y)
        return nn.functional.linear(v, module.dequantize(), module.bias.float()).to(x.dtype)

    def commit(self) -> None:
        """Put the steps where they belong, once nothing of the layer runs on the old gain any more."""
        if self.static is None:
            return
        if self.norm is not None:
            self.norm.weight.data.copy_(self.gain)
        if self.values is not None:
            module = self.values[0].modules[self.values[1]]
            scale = self.value_step()
            module.weight_scale.div_(scale.unsqueeze(1))
            module.bias.data.div_(scale)
            if module.rank:
                module.low_rank_up.div_(scale.unsqueeze(1))

    def value_step(self) -> Tensor | None:
        """fp64 [Hkv * D]: what v_proj's outputs are divided by; None where they stay."""
        if self.static is None or self.values is None:
            return None
        stage, place, head = self.values
        return self.static.step.view(stage.linears[place].out_features // head, -1, head)[:, 0].reshape(-1)
