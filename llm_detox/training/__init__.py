"""Training: SFT and DPO of LoRA adapters, preference pairs, adapter merge. Imports torch in its modules only."""
