"""What curvlinops's Kronecker factors take, for `kronecker.py --peer`; run by a Python that has it, and prints JSON."""

import itertools
import json
import statistics
import sys
import time

import torch
from curvlinops import KFACInverseLinearOperator, KFACLinearOperator


def main(widths: list[int], batch: int, damping: float, rounds: int, threads: int) -> None:
    """Prints the median seconds of each function, which take turns."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    layers: list[torch.nn.Module] = []
    for inputs, outputs in itertools.pairwise(widths):
        layers += [torch.nn.Linear(inputs, outputs), torch.nn.ReLU()]
    model = torch.nn.Sequential(*layers[:-1])
    loss, x, y = torch.nn.CrossEntropyLoss(), torch.rand(batch, widths[0]), torch.randint(0, widths[-1], (batch,))
    parameters = list(model.parameters())
    vector = torch.randn(sum(p.numel() for p in parameters))

    def made():
        options = {"check_deterministic": False, "separate_weight_and_bias": False, "fisher_type": "mc"}
        return KFACLinearOperator(model, loss, parameters, [(x, y)], **options)

    def factors():
        operator = made()
        operator.compute_kronecker_factors()
        return operator

    kfac = factors()

    def inverse_and_product(**damped):
        return KFACInverseLinearOperator(kfac, damping=damping, **damped) @ vector

    kept = KFACInverseLinearOperator(kfac, damping=damping, use_heuristic_damping=True)
    functions = {
        "gradient": lambda: torch.autograd.grad(loss(model(x), y), parameters),
        "factors": factors,
        "product": lambda: kept @ vector,
        "inverse, pi, and product": lambda: inverse_and_product(use_heuristic_damping=True),
        "inverse, exact, and product": lambda: inverse_and_product(use_exact_damping=True),
    }
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for turn in range(rounds + 2):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            if turn >= 2:
                seconds[name].append(time.perf_counter() - start)
    print(json.dumps({name: statistics.median(times) for name, times in seconds.items()}))


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
