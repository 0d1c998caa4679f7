"""Autograd on the device: a small MLP and a tiny Qwen2, trained beside the CPU."""

import copy
import unittest

import support
import torch
import torch.nn.functional as F

SEED = 20260608
STEPS = 3


def losses(model, step, optimizer):
    """The loss of every step, and the parameters at the end."""
    found = []
    for index in range(STEPS):
        optimizer.zero_grad()
        loss = step(model, index)
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    return found, {name: value.detach().cpu() for name, value in model.named_parameters()}


class Training(unittest.TestCase):
    def both(self, make_model, make_step, make_optimizer, rtol):
        torch.manual_seed(SEED)
        cpu = make_model()
        npu = copy.deepcopy(cpu).to("npu")
        want, want_parameters = losses(cpu, make_step("cpu"), make_optimizer(cpu.parameters()))
        got, got_parameters = losses(npu, make_step("npu"), make_optimizer(npu.parameters()))
        self.assertNotEqual(want[0], want[-1], "the reference learns nothing")
        for ours, theirs in zip(got, want):
            self.assertAlmostEqual(ours, theirs, delta=rtol * abs(theirs))
        return got_parameters, want_parameters

    def test_gradients_of_an_mlp(self):
        torch.manual_seed(SEED)
        cpu = torch.nn.Sequential(
            torch.nn.Linear(12, 32),
            torch.nn.GELU(),
            torch.nn.LayerNorm(32),
            torch.nn.Linear(32, 32),
            torch.nn.SiLU(),
            torch.nn.Linear(32, 7),
        )
        npu = copy.deepcopy(cpu).to("npu")
        data, labels = torch.randn(20, 12), torch.randint(0, 7, (20,))
        inputs = {"cpu": data.clone().requires_grad_(), "npu": data.to("npu").requires_grad_()}
        F.cross_entropy(cpu(inputs["cpu"]), labels).backward()
        F.cross_entropy(npu(inputs["npu"]), labels.to("npu")).backward()
        support.close(inputs["npu"].grad, inputs["cpu"].grad, "input")
        for (name, ours), theirs in zip(npu.named_parameters(), cpu.parameters()):
            support.close(ours.grad, theirs.grad, name)

    def mlp(self, make_optimizer):
        data, labels = torch.randn(64, 12, generator=support.seeded(SEED)), torch.arange(64) % 5

        def make_step(device):
            x, y = data.to(device), labels.to(device)
            return lambda model, _: F.cross_entropy(model(x), y)

        def model():
            return torch.nn.Sequential(torch.nn.Linear(12, 48), torch.nn.ReLU(), torch.nn.Linear(48, 5))

        got, want = self.both(model, make_step, make_optimizer, rtol=1e-5)
        for name, value in want.items():
            support.close(got[name], value, name)

    def test_mlp_with_sgd_and_momentum(self):
        self.mlp(lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=1e-2))

    def test_mlp_with_adamw(self):
        self.mlp(lambda parameters: torch.optim.AdamW(parameters, lr=1e-2))

    def test_mlp_with_adamw_one_tensor_at_a_time(self):
        self.mlp(lambda parameters: torch.optim.AdamW(parameters, lr=1e-2, foreach=False))

    def qwen2(self, attention):
        tokens = torch.randint(0, 320, (STEPS, 4, 24), generator=support.seeded(SEED))

        def make_step(device):
            batches = tokens.to(device)
            return lambda model, index: model(input_ids=batches[index], labels=batches[index]).loss

        self.both(
            lambda: support.qwen2(attention, initializer_range=0.1).train(),
            make_step,
            lambda parameters: torch.optim.AdamW(parameters, lr=1e-3),
            rtol=1e-5,
        )

    def test_three_steps_of_qwen2_eager(self):
        self.qwen2("eager")

    def test_three_steps_of_qwen2_sdpa(self):
        self.qwen2("sdpa")


if __name__ == "__main__":
    support.main()
