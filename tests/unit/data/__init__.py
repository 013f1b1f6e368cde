"""Tests of distill.data; a package, so that its files share builders of tiny corpora."""
