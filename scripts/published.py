"""The rows of the table of published figures: what was published, what is to be reached, and the settings to try."""

from __future__ import annotations

import math
from typing import NamedTuple

from jaxrnn.training.settings import Settings, recipe

MOST_TRIED = 4  # settings of a row


class Reproduction(NamedTuple):
    """Describes a row: a published figure, and the settings that are to come as far.

    A setting is known by its place among those tried: new ones go to the end.
    """

    title: str
    published: str  # figures and their sources
    goal: float | None  # what is to be reached, in the unit of the figure; None tries all settings, and only reports
    figure: str  # "test", "loss" or "error_rate", of the parameters with the least validation loss
    seeds: int
    tried: tuple[Settings, ...]
    file: str | None = None  # in --data
    remark: str = ""  # why the goal was missed, in a sentence

    @property
    def chosen_by(self) -> str:
        """Returns the figure by which a setting is chosen, which is never one of the test part."""
        return "loss" if self.figure == "test" else self.figure

    def reached(self, value: float) -> bool:
        """Returns whether a figure is as good as the goal."""
        return self.goal is None or value <= self.goal


BL, BAI = "Boulanger-Lewandowski et al. 2012", "Bai et al. 2018"
PASCANU, LE = "Pascanu et al. 2013", "Le et al. 2015"
JSB = {"dropout": 0.3, "average": 0.99, "rate": 2e-3, "steps": 1500, "patience": 8, "every": 50}
NOTTINGHAM = {"average": 0.99, "rate": 3e-3, "steps": 3000, "every": 250, "patience": 0}
SMALL_INPUTS = {"input_scale": 0.3, "rate": 2e-3, "steps": 12_000, "every": 500}
ORDER = {"length": 50, "input_scale": 1.0, "rate": 1e-3, "steps": 10_000, "every": 1000}
REGULARISED = {"vanishing": 1.0, "vanishing_steps": 1000.0}
CALM = {"rate": 3e-4, "input_scale": 0.3, "steps": 20_000}
PLAIN = {"vanishing": 0.0, "vanishing_steps": math.inf}
GATED = {"rate": 3e-3, "steps": 4000, "every": 500}
COPY = {"cell": "elman", "length": 100, "batch": 32}
IRNN = {"activation": "relu", "initializer": "identity"}
TEXT = {"batch": 32, "chunk": 64, "every": 500}

ROWS = {
    "jsb-elman": Reproduction(
        "JSB chorales, Elman", f"8.71 ({BL}), 8.91 ({BAI}), 8.58 (Hessian-free)", 8.5, "test", 3,
        (
            recipe("chorales", hidden=300, **JSB),
            recipe("chorales", hidden=300, **JSB | {"rate": 3e-3, "steps": 3000}),
            recipe("chorales", hidden=400, **JSB | {"dropout": 0.5, "rate": 3e-3, "steps": 3000}),
        ),
        "JSB_Chorales.mat"),
    "jsb-gru": Reproduction(
        "JSB chorales, GRU", f"8.43 ({BAI})", 8.43, "test", 3,
        (
            recipe("chorales", cell="gru", hidden=200, **JSB),
            recipe("chorales", cell="gru", hidden=200, **JSB | {"rate": 3e-3, "steps": 3000}),
        ),
        "JSB_Chorales.mat"),
    "order-50": Reproduction(
        "temporal order, T = 50, Elman, regularised", f"0 % wrong ({PASCANU})", 0.01, "error_rate", 5,
        (
            recipe("order", **ORDER, **REGULARISED),
            recipe("order", **ORDER | REGULARISED | {"rate": 3e-4, "vanishing_steps": 5000.0}),
            recipe("order", **ORDER | REGULARISED | {"rate": 5e-4, "vanishing_steps": 5000.0, "steps": 20_000}),
            recipe("order", **ORDER | CALM | {"vanishing": 1.0, "vanishing_steps": 5000.0}),
        )),
    "order-50-plain": Reproduction(
        "temporal order, T = 50, Elman, plain", "-", 0.01, "error_rate", 5,
        (
            recipe("order", **ORDER, **PLAIN),
            recipe("order", **ORDER | CALM | PLAIN),
        ),
        remark="One seed of five stays at chance: there the gradient does not reach the symbols, 25 to 45 steps back."),
    "order-50-gru": Reproduction(
        "temporal order, T = 50, GRU", "-", 0.01, "error_rate", 5,
        (recipe("order", length=50, cell="gru", **GATED, **PLAIN),)),
    "adding-200": Reproduction(
        "adding, T = 200, IRNN", f"solved ({LE})", 0.01, "loss", 3,
        (
            recipe("adding", length=200, steps=8000, every=1000, rate=3e-4, on_nan="skip"),
            recipe("adding", length=200, steps=8000, every=1000, rate=2e-4, warmup=2000, on_nan="skip"),
        )),
    "adding-200-gru": Reproduction(
        "adding, T = 200, GRU", "-", 0.001, "loss", 3, (recipe("adding", length=200, cell="gru", **GATED),)),
    "shakespeare-elman": Reproduction(
        "tiny Shakespeare, Elman", "1.88 (nanoGPT, 3 minutes of a CPU)", 1.50, "loss", 1,
        (
            recipe("text", hidden=768, steps=2500, **TEXT),
            recipe("text", hidden=768, steps=7000, dropout=0.1, average=0.999, **TEXT),
            recipe("text", hidden=768, steps=12_000, dropout=0.2, average=0.999, **TEXT),
            recipe("text", hidden=768, steps=6000, dropout=0.05, average=0.999, **TEXT),
        ),
        "tiny-shakespeare.txt",
        "It learns the text it sees better (1.27) than the rest: a little dropout helps, 0.05 more than 0.1 and 0.2."),
    "shakespeare-lstm": Reproduction(
        "tiny Shakespeare, LSTM", "1.4697 (nanoGPT, 3 minutes of an A100)", 1.4697, "loss", 1,
        (
            recipe("text", cell="lstm", hidden=400, steps=4000, rate=3e-3, dropout=0.1, **TEXT),
            recipe("text", cell="lstm", hidden=512, steps=6000, rate=4e-3, dropout=0.2, average=0.999, **TEXT),
        ),
        "tiny-shakespeare.txt"),
    "nottingham-elman": Reproduction(
        "Nottingham, Elman", f"4.46 ({BL}), 4.05 ({BAI}), 3.36 ({PASCANU})", 3.36, "test", 1,
        (
            recipe("chorales", hidden=400, dropout=0.2, **NOTTINGHAM),
            recipe("chorales", hidden=400, dropout=0.05, **NOTTINGHAM | {"steps": 8000, "every": 500}),
            recipe("chorales", hidden=400, dropout=0.1, **NOTTINGHAM | SMALL_INPUTS),
            recipe("chorales", hidden=700, dropout=0.05, **NOTTINGHAM | {"steps": 8000, "every": 500}),
        ),
        "Nottingham.mat",
        "Its loss in training is as high as that of validation: it is the learning that falls short, not the memory."
        " Less dropout was better each time, and none at all is left to try; wider and slower were worse."),
    "nottingham-lstm": Reproduction(
        "Nottingham, LSTM", f"3.29 ({BAI})", 3.2, "test", 1,
        (
            recipe("chorales", cell="lstm", hidden=300, dropout=0.2, **NOTTINGHAM),
            recipe("chorales", cell="lstm", hidden=300, dropout=0.3, **NOTTINGHAM | {"steps": 9000, "every": 500}),
        ),
        "Nottingham.mat"),
    "copy-100": Reproduction(
        "copy memory, pause 100, Elman", "-", 0.1732, "loss", 1,
        (
            recipe("copy", **COPY, hidden=256, input_scale=0.02, rate=1e-3, steps=12_000, every=1000),
            recipe("copy", **COPY, hidden=512, input_scale=0.01, rate=5e-4, steps=8000, every=1000),
            recipe("copy", **COPY, hidden=256, input_scale=0.02, rate=1e-3, steps=5000, every=500),
        )),
    "copy-100-gru": Reproduction(
        "copy memory, pause 100, GRU", "-", 0.1732, "loss", 1, (recipe("copy", length=100, cell="gru", **GATED),)),
    "digits": Reproduction(
        "8 x 8 digits, pixel by pixel, Elman", "-", None, "error_rate", 3,
        (
            recipe("digits", input_scale=0.1, **IRNN),
            recipe("digits", dropout=0.2, average=0.99),
            recipe("digits"),
        )),
    "permuted-digits": Reproduction(
        "8 x 8 digits, permuted, Elman", "-", None, "error_rate", 3,
        (recipe("permuted-digits", dropout=0.2, average=0.99), recipe("permuted-digits"))),
    "adding-600": Reproduction(
        "adding, T = 600, IRNN", f"0.177, chance ({BAI})", 1 / 6, "loss", 1,
        (
            recipe("adding", length=600, steps=6000, every=500, rate=2e-5, recurrent_scale=0.99, on_nan="skip"),
        ),
        remark="A W that begins as the identity itself makes the loss overflow, at rates of 1e-4, 3e-5 and 1e-5, and at"
        " 3e-5 with the regulariser: such runs end without a figure. Here it begins at 0.99 of the identity."),
    "adding-600-gru": Reproduction(
        "adding, T = 600, GRU", f"5.3e-5 ({BAI})", 0.001, "loss", 1,
        (recipe("adding", length=600, cell="gru", **GATED),)),
}  # fmt: skip
