"""Linear regressions with an intercept: least squares, ridge and lasso."""

import warnings

import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LassoLarsIC
from sklearn.model_selection import KFold
from threadpoolctl import threadpool_limits
from torch import Tensor, nn
from torch.nn.utils import skip_init

from sbi_jeffreys.preprocessing.scaling import varies

RIDGE_PENALTIES = 10.0 ** torch.arange(-6, 3, 0.5, dtype=torch.float64)
"""Ridge penalties that are tried, per row, on inputs of unit variance."""

NUM_FOLDS = 10
"""Folds in which the lasso's predictions are held out."""

VARIANCE_FLOOR = 1e-6
"""Added to the variances of errors, so that no covariance is singular."""


def least_squares(outputs: Tensor, inputs: Tensor) -> nn.Linear:
    """Return the regression of outputs `(N, M)` on inputs `(N, D)`.

    It is solved on the CPU by a singular value decomposition, so that inputs may be
    linearly dependent. The layer is on the device of `inputs`.
    """
    design = torch.cat([inputs, torch.ones_like(inputs[:, :1])], 1).cpu()
    fit = torch.linalg.lstsq(design, outputs.cpu(), driver="gelsd").solution.to(inputs)
    return linear_layer(fit[:-1].T, fit[-1])


def ridge(outputs: Tensor, inputs: Tensor) -> tuple[nn.Linear, Tensor]:
    """Return the ridge regression with the best leave-one-out errors.

    The penalty is the one of `RIDGE_PENALTIES` with the smallest generalised variance of
    leave-one-out errors.

    Args:
        outputs: Shape `(N, M)`, double precision, on the CPU.
        inputs: Shape `(N, D)`, in the same precision, on the CPU.

    Returns:
        The regression, and its leave-one-out predictions, shape `(N, M)`.
    """
    standardized, loc, scale = _standardized(inputs)
    left, values, right = torch.linalg.svd(standardized, full_matrices=False)
    mean = outputs.mean(0)
    projected = left.T @ (outputs - mean)
    best_score, best = torch.inf, (mean, mean)
    for penalty in len(outputs) * RIDGE_PENALTIES:
        kept = values.square() / (values.square() + penalty)
        leverage = (left.square() @ kept).clamp(max=1 - 1e-6).unsqueeze(-1)
        residuals = outputs - mean - left @ (kept.unsqueeze(-1) * projected)
        errors = residuals / (1 - leverage)
        score = log_generalised_variance(errors)
        if score < best_score:
            shrunk = values / (values.square() + penalty)
            weight = (right.T @ (shrunk.unsqueeze(-1) * projected)).T / scale
            best_score, best = score, (weight, outputs - errors)
    weight, predictions = best
    return linear_layer(weight, mean - weight @ loc), predictions


def lasso(outputs: Tensor, inputs: Tensor) -> nn.Linear:
    """Return the regression of each output on the inputs that the lasso selects.

    The step of the lasso's path with the smallest BIC selects the inputs. Their
    coefficients are then fitted by least squares, without a penalty.

    Args:
        outputs: Shape `(N, M)`, double precision, on the CPU.
        inputs: Shape `(N, D)`, in the same precision, on the CPU.
    """
    standardized, loc, scale = _standardized(inputs)
    weight = inputs.new_zeros(outputs.shape[1], len(loc))
    for i in varies(outputs).nonzero().flatten().tolist():
        row, output = weight[i], outputs[:, i]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            path = LassoLarsIC("bic").fit(standardized.numpy(), output.numpy())
        kept = torch.as_tensor(path.coef_).nonzero().squeeze(-1)
        if len(kept):
            fit = least_squares(output.unsqueeze(-1), standardized[:, kept])
            row[kept] = fit.weight[0] / scale[kept]
    return linear_layer(weight, outputs.mean(0) - weight @ loc)


@threadpool_limits.wrap(limits=1)  # the problems are small
def lasso_with_held_out(outputs: Tensor, inputs: Tensor) -> tuple[nn.Linear, Tensor]:
    """Return `lasso` of all rows, and the predictions for folds left out, `(N, M)`."""
    predictions = torch.empty_like(outputs)
    folds = KFold(NUM_FOLDS, shuffle=True, random_state=0)
    for others, fold in folds.split(outputs):
        predictions[fold] = lasso(outputs[others], inputs[others])(inputs[fold])
    return lasso(outputs, inputs), predictions


def covariance(errors: Tensor) -> Tensor:
    """Return the covariance of errors `(N, D)` of mean zero; it is never singular."""
    floor = VARIANCE_FLOOR * torch.eye(errors.shape[1], dtype=errors.dtype)
    return errors.T @ errors / len(errors) + floor


def log_generalised_variance(errors: Tensor) -> float:
    """Return the log determinant of the covariance of errors, shape `(N, D)`."""
    return float(torch.linalg.slogdet(covariance(errors))[1])


def linear_layer(weight: Tensor, bias: Tensor) -> nn.Linear:
    """Return a layer that is not trained, with a weight of shape `(outputs, inputs)`."""
    layer = skip_init(
        nn.Linear, *reversed(weight.shape), dtype=weight.dtype, device=weight.device
    )
    layer.requires_grad_(False)
    layer.weight.copy_(weight)
    layer.bias.copy_(bias)
    return layer


def _standardized(inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return inputs `(N, D)` of unit variance, their means and standard deviations.

    A column that does not vary has an infinite scale, and is zero when standardised.
    """
    loc, scale = inputs.mean(0), inputs.std(0, correction=0)
    scale = torch.where(varies(inputs), scale, torch.inf)
    return (inputs - loc) / scale, loc, scale
