"""Tests of distill.corpora; a package, so that its files share builders of tiny corpora."""
