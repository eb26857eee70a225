"""Distributions over the architectures of a space: what differentiable methods learn."""

from __future__ import annotations

from sartor.policies.base import Mixture, Policy
from sartor.policies.controller import Controller
from sartor.policies.dirichlet import Dirichlet
from sartor.policies.gumbel import Gumbel
from sartor.policies.sigmoid import Sigmoid
from sartor.policies.softmax import Softmax
from sartor.policies.two_path import TwoPath

__all__ = ["Controller", "Dirichlet", "Gumbel", "Mixture", "Policy", "Sigmoid", "Softmax", "TwoPath"]
