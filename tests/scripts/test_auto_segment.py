"""The check of "auto" against the best K: it tries what "auto" chooses, and saves what it measured."""

import csv

import pytest
from conftest import script  # noqa: F401
