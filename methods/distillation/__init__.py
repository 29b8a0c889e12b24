"""Distillation: teaching one network what another knows."""
