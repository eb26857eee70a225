"""Searchable layers: `layer(x, arch)`; and the parts from which a user builds a searchable network of his own."""

from __future__ import annotations

from sartor.layers.base import Chain, ElasticDepth, OneOf, Searchable, activate, activation, call
from sartor.layers.catalogue import KINDS
from sartor.layers.choice import Choice, Width, make_divisible, mix
from sartor.layers.conv import ConvBNAct, ElasticBatchNorm2d, ElasticConv2d, ElasticLinear

__all__ = [
    "KINDS",
    "Chain",
    "Choice",
    "ConvBNAct",
    "ElasticBatchNorm2d",
    "ElasticConv2d",
    "ElasticDepth",
    "ElasticLinear",
    "OneOf",
    "Searchable",
    "Width",
    "activate",
    "activation",
    "call",
    "make_divisible",
    "mix",
]
