"""The contract: configs, records and the Arrow schema. Imports nothing of ours."""
