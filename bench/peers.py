"""Other libraries' 4- and 8-bit linear layers, with one interface.

A peer is prepared from a float weight [N, K] and then bound to an input [M, K]; the bound call returns [M,
N]. Each quantises the weight itself, by its own rule. A peer that is not installed or refuses the shape
raises `Unavailable` with the reason.
"""

import warnings
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Call = Callable[[], Tensor]


class Unavailable(RuntimeError):
    """This peer cannot run here; the message says why."""


class TorchFloat:
    """torch.nn.functional.linear in fp32 or bf16."""

    error_bound = 0.02

    def __init__(self, dtype: torch.dtype):
        self.dtype = dtype
        self.name = {torch.float32: "torch fp32", torch.bfloat16: "torch bf16"}[dtype]

    def prepare(self, weight: Tensor) -> None:
        self.weight = weight.to(self.dtype)

    def bind(self, x: Tensor) -> Call:
        x, weight = x.to(self.dtype), self.weight
        return lambda: F.linear(x, weight)


class TorchDynamicInt8:
    """torch.ao.quantization.quantize_dynamic: int8 weight, per-tensor dynamic 8-bit activation, fp32 in and
    out.
    """

    error_bound = 0.05

    def __init__(self, engine: str):
        self.engine, self.name = engine, f"torch dynamic int8 {engine}"

    def prepare(self, weight: Tensor) -> None:
        if self.engine not in torch.backends.quantized.supported_engines:
            raise Unavailable(f"this torch has no quantised engine {self.engine}")
        before = torch.backends.quantized.engine
        torch.backends.quantized.engine = self.engine
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                from torch.ao.quantization import per_channel_dynamic_qconfig, quantize_dynamic

                linear = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
                linear.weight = torch.nn.Parameter(weight, requires_grad=False)
                model = torch.nn.Sequential(linear)
                self.module = quantize_dynamic(model, {torch.nn.Linear: per_channel_dynamic_qconfig})[0]
        finally:
            torch.backends.quantized.engine = before

    def bind(self, x: Tensor) -> Call:
        module = self.module
        return lambda: module(x)


class TorchInt4Pack:
    """torch.ops.aten._weight_int4pack_mm_for_cpu: int4 weight in groups, bf16 activation kept in bf16."""

    name, error_bound = "torch int4pack bf16", 0.2

    def prepare(self, weight: Tensor) -> None:
        n, k = weight.shape
        self.group = next((g for g in (128, 64, 32) if k % g == 0), 0)
        if not self.group:
            raise Unavailable(f"K = {k} is no multiple of 32")
        w = weight.view(n, -1, self.group)
        scale = w.abs().amax(-1, keepdim=True) / 7
        code = (w / scale).round().clamp(-8, 7).view(n, k).to(torch.int32) + 8
        self.packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(code, 1)
        scale = scale.squeeze(-1).T  # [K / group, N]
        self.scale_zero = torch.stack((scale, torch.zeros_like(scale)), -1).to(torch.bfloat16).contiguous()

    def bind(self, x: Tensor) -> Call:
        op, xb, w, group, sz = (
            torch.ops.aten._weight_int4pack_mm_for_cpu.default,
            x.bfloat16(),
            self.packed,
            self.group,
            self.scale_zero,
        )
        return lambda: op(xb, w, group, sz)


class OnnxRuntime:
    """onnxruntime's MatMulNBits: int4 weight, blocks of 128, accuracy_level 4 (8-bit activations)."""

    name, error_bound, block = "onnxruntime MatMulNBits", 0.2, 128

    def prepare(self, weight: Tensor) -> None:
        try:
            import onnxruntime
            from onnx import TensorProto, helper, numpy_helper
        except ImportError as error:
            raise Unavailable(f"needs onnx and onnxruntime: {error}") from error
        n, k = weight.shape
        blocks = -(-k // self.block)
        w = F.pad(weight, (0, blocks * self.block - k)).view(n, blocks, self.block)
        scale = w.abs().amax(-1) / 7
        code = (w / scale.unsqueeze(-1)).round().clamp(-8, 7).to(torch.int32) + 8
        packed = (code[..., 0::2] | code[..., 1::2] << 4).to(torch.uint8)
        node = helper.make_node(
            "MatMulNBits",
            ["x", "b", "s"],
            ["y"],
            domain="com.microsoft",
            K=k,
            N=n,
            bits=4,
            block_size=self.block,
            accuracy_level=4,
        )
        graph = helper.make_graph(
            [node],
            "linear",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["M", k])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["M", n])],
            [
                numpy_helper.from_array(packed.numpy(), "b"),
                numpy_helper.from_array(scale.flatten().numpy(), "s"),
            ],
        )
        model = helper.make_model(
            graph,
            ir_version=10,
            opset_imports=[helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)],
        )
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = torch.get_num_threads(), 1
        options.add_session_config_entry("session.force_spinning_stop", "1")  # spins in a run, not after it
        self.session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        self.n = n

    def bind(self, x: Tensor) -> Call:
        x, y, session = x.contiguous(), torch.empty(x.shape[0], self.n), self.session
        binding, f32 = session.io_binding(), "float32"
        import numpy

        binding.bind_input("x", "cpu", 0, numpy.dtype(f32), tuple(x.shape), x.data_ptr())
        binding.bind_output("y", "cpu", 0, numpy.dtype(f32), tuple(y.shape), y.data_ptr())

        def call(keep: Tensor = x) -> Tensor:
            session.run_with_iobinding(binding)
            return y

        return call


class OpenVino:
    """OpenVINO: u4 weight in groups of 128 (or the largest of 64, 32 that divides K), dynamic 8-bit
    activations.
    """

    name, error_bound = "openvino u4", 0.2

    def prepare(self, weight: Tensor) -> None:
        try:
            import numpy
            import openvino as ov
            from openvino import opset13 as op
        except ImportError as error:
            raise Unavailable(f"needs openvino: {error}") from error
        n, k = weight.shape
        group = next((g for g in (128, 64, 32) if k % g == 0), 0)
        if not group:
            raise Unavailable(f"K = {k} is no multiple of 32")
        w = weight.view(n, k // group, group)
        scale = (w.abs().amax(-1, keepdim=True) / 7).half()
        code = (w / scale.float()).round().clamp(-8, 7).to(torch.int32).flatten() + 8
        codes = ov.Tensor(ov.Type.u4, ov.Shape([n, k // group, group]))
        codes.data[:] = (code[0::2] | code[1::2] << 4).to(torch.uint8).numpy().reshape(codes.data.shape)
        x = op.parameter([-1, k], numpy.float32, name="x")
        half = op.convert(op.constant(codes), numpy.float16)
        zero = ov.Tensor(ov.Type.u4, ov.Shape([1, 1, 1]))
        zero.data[:] = 8
        half = op.subtract(half, op.convert(op.constant(zero), numpy.float16))
        half = op.multiply(half, op.constant(scale.numpy()))
        full = op.convert(
            op.reshape(half, op.constant(numpy.array([n, k], dtype=numpy.int64)), False), numpy.float32
        )
        model = ov.Model([op.result(op.matmul(x, full, False, True))], [x], "linear")
        config = {
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": group,
            "INFERENCE_PRECISION_HINT": "f32",
        }
        self.compiled = ov.Core().compile_model(model, "CPU", config)

    def bind(self, x: Tensor) -> Call:
        import openvino as ov

        request = self.compiled.create_infer_request()
        request.set_input_tensor(ov.Tensor(x.contiguous().numpy(), shared_memory=True))

        def call(keep: Tensor = x) -> Tensor:
            request.infer()
            return torch.from_numpy(request.get_output_tensor().data)

        return call


def all_peers() -> list:
    """Every peer of the linear layer, unprepared."""
    return [
        TorchFloat(torch.float32),
        TorchFloat(torch.bfloat16),
        TorchDynamicInt8("onednn"),
        TorchDynamicInt8("fbgemm"),
        TorchInt4Pack(),
        OnnxRuntime(),
        OpenVino(),
    ]
