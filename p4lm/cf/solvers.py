r"""Rows of a half step: R systems at a time, exactly or in a few steps.

In the eigenbasis of the shared part the system of a row with entries V [T, E],
targets t [T] and a positive diagonal d [E] is

  (V^T V + diag d) x = V^T t.

  cholesky  exactly. In factors (E x E), or, for rows of fewer entries, in
            entries (T x T) by the matrix inversion lemma:
            (1 + V diag(1/d) V^T) z = t,  x = diag(1/d) V^T z;  z = t - V x.
  cg        some steps of conjugate gradients from the present row (Takacs et
            al. 2011), preconditioned by the diagonal d.
  block     one sweep of exact minimisations over blocks of factors from the
            present row, others held (iALS++, Rendle et al. 2021). Theirs are
            blocks of the factors themselves; ours, of the eigenbasis.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp

from p4lm.cf.buckets import solves_in_entries
from p4lm.errors import UserError
from p4lm.typing import Array, Float

# TF32 on a GPU would cost three digits of the normal equations.
_EXACT = jax.lax.Precision.HIGHEST
einsum = functools.partial(jnp.einsum, precision=_EXACT)


@dataclasses.dataclass(frozen=True)
class Solver:
  """How the rows of a half step are found.

  Attributes:
    name: 'cholesky', 'cg' or 'block'.
    cg_steps: of 'cg'.
    block_width: factors of a block of 'block'.
  """

  name: Literal['cholesky', 'cg', 'block'] = 'cholesky'
  cg_steps: int = 3
  block_width: int = 64

  def __post_init__(self):
    if self.name not in ('cholesky', 'cg', 'block'):
      raise UserError(
        f'solver is {self.name!r}; choose one of cholesky, cg, block'
      )
    for name in ('cg_steps', 'block_width'):
      if getattr(self, name) < 1:
        raise UserError(f'{name} is {getattr(self, name)}; it must be >= 1')

  @property
  def is_exact(self) -> bool:
    """Whether a half step forgets the present rows."""
    return self.name == 'cholesky'


def solve_entries(
  factors: Float[Array, 'R T E'],
  targets: Float[Array, 'R T'],
  diagonal: Float[Array, 'R E'],
  start: Float[Array, 'R E'] | None,
  solver: Solver,
) -> tuple[Float[Array, 'R E'], Float[Array, ' R']]:
  """Rows whose entries are all at hand.

  Args:
    factors: V of each row; zero for padding.
    targets: t, likewise.
    diagonal: d.
    start: present rows; None for 'cholesky'.
    solver: the method.
  Returns:
    (x [R, E], squared [R] = |t - V x|^2).
  """
  length, width = factors.shape[1:]
  if solver.is_exact and solves_in_entries(length, width):
    scaled = factors / diagonal[:, None, :]
    kernel = einsum('rte,rse->rts', scaled, factors)
    z = _cholesky_solve(kernel, jnp.ones_like(targets), targets)
    x = einsum('rte,rt->re', scaled, z)
  elif solver.name == 'cg':
    right = einsum('rte,rt->re', factors, targets)

    def apply(p):
      return einsum('rte,rt->re', factors, einsum('rte,re->rt', factors, p))

    x = _conjugate_gradients(apply, diagonal, right, start, solver.cg_steps)
  elif solver.name == 'block' and solver.block_width < width:
    return _sweep_entries(factors, targets, diagonal, start, solver)
  else:
    gram = einsum('rte,rtf->ref', factors, factors)
    right = einsum('rte,rt->re', factors, targets)
    x = _cholesky_solve(gram, diagonal, right)
  residual = targets - einsum('rte,re->rt', factors, x)
  return x, jnp.sum(residual**2, axis=1)


def solve_gram(
  gram: Float[Array, 'R E E'],
  right: Float[Array, 'R E'],
  squared_targets: Float[Array, ' R'],
  diagonal: Float[Array, 'R E'],
  start: Float[Array, 'R E'] | None,
  solver: Solver,
) -> tuple[Float[Array, 'R E'], Float[Array, ' R']]:
  """As `solve_entries`, from V^T V, V^T t and t^T t.

  The squared residual is t^T t - 2 x^T V^T t + x^T V^T V x.
  """
  if solver.name == 'cg':
    x = _conjugate_gradients(
      functools.partial(einsum, 'ref,rf->re', gram),
      diagonal,
      right,
      start,
      solver.cg_steps,
    )
  elif solver.name == 'block':
    x = start
    for part in _blocks(gram.shape[-1], solver.block_width):
      gradient = right - einsum('ref,rf->re', gram, x) - diagonal * x
      step = _cholesky_solve(
        gram[:, part, part], diagonal[:, part], gradient[:, part]
      )
      x = x.at[:, part].add(step)
  else:
    x = _cholesky_solve(gram, diagonal, right)
  explained = 2 * right - einsum('ref,rf->re', gram, x)
  return x, squared_targets - jnp.sum(x * explained, axis=1)


def _sweep_entries(factors, targets, diagonal, start, solver):
  x = start
  residual = targets - einsum('rte,re->rt', factors, x)
  for part in _blocks(factors.shape[-1], solver.block_width):
    some = factors[:, :, part]
    gradient = einsum('rte,rt->re', some, residual)
    gradient -= diagonal[:, part] * x[:, part]
    gram = einsum('rte,rtf->ref', some, some)
    step = _cholesky_solve(gram, diagonal[:, part], gradient)
    x = x.at[:, part].add(step)
    residual -= einsum('rte,re->rt', some, step)
  return x, jnp.sum(residual**2, axis=1)


def _blocks(width: int, size: int) -> list[slice]:
  return [slice(at, min(at + size, width)) for at in range(0, width, size)]


def _cholesky_solve(matrix, diagonal, right):
  """Solves (matrix + diag) x = right for each row."""
  identity = jnp.eye(matrix.shape[-1], dtype=matrix.dtype)
  matrix = matrix + diagonal[:, :, None] * identity[None]
  lower = jax.lax.linalg.cholesky(matrix, symmetrize_input=False)
  return jax.scipy.linalg.cho_solve((lower, True), right[:, :, None])[:, :, 0]


def _conjugate_gradients(
  apply: Callable[[Array], Array], diagonal, right, start, steps: int
):
  """Preconditioned steps on (A + diag) x = right; a solved row stays."""
  x = start
  residual = right - apply(x) - diagonal * x
  scaled = residual / diagonal
  direction = scaled
  energy = jnp.sum(residual * scaled, axis=1)
  for _ in range(steps):
    moved = apply(direction) + diagonal * direction
    curvature = jnp.sum(direction * moved, axis=1)
    rate = jnp.where(curvature > 0, energy / curvature, 0)[:, None]
    x += rate * direction
    residual -= rate * moved
    scaled = residual / diagonal
    after = jnp.sum(residual * scaled, axis=1)
    ratio = jnp.where(energy > 0, after / energy, 0)[:, None]
    direction = scaled + ratio * direction
    energy = after
  return x
