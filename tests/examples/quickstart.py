# %% [markdown]
# # From a teacher to a few-step student, in Python
#
# A discrete flow matching teacher writes a text in many small random jumps. We make a small dataset of such trajectories, look
# into it, distil a student that writes in a few large jumps, and let it write. Everything runs on a laptop, on models that ship
# with the package; nothing here needs a terminal or Ray.

# %%
from tsdfm.pipeline import batches, distill, generate_dataset, open_dataset, replay, sample, score, verify
from tsdfm.schemas.distill import DataConfig, DistillConfig, DistillOptim
from tsdfm.schemas.generate import GenerateConfig, RolloutConfig, ShapingConfig
from tsdfm.schemas.sample import SampleConfig

# %% [markdown]
# ## Generate
#
# Every trajectory is made twice with the same noise: *blind*, as the teacher would, and *shaped*: at every step the energy
# compass scores 4 candidate jumps, and the most coherent one is kept.

# %%
config = GenerateConfig(out="quickstart/data", trajectories=8, arm="both", rollout=RolloutConfig(steps=16),
                        shaping=ShapingConfig(candidates=4))
report = generate_dataset(config)
print(f"{report.rows} rows, {report.bytes:,} bytes in {report.seconds} s")

manifest, faults = verify("quickstart/data")
assert not faults

# %% [markdown]
# ## Replay
#
# A row is the source and the jumps, so every state x_t is there without loss.

# %%
dataset = open_dataset("quickstart/data")
row = dataset.row(0, arm="shaped")
for t in (0.25, 0.5, 1.0):
    print(f"t = {t}: {dataset.vocabulary.decode(replay(row, t))!r}")
assert (replay(row, 1.0) == row.tokens).all()

# %% [markdown]
# ## Plot energies
#
# What the compass says of each candidate, step by step (lower is more coherent), and of the finished texts of both arms.

# %%
import numpy as np
from matplotlib import pyplot as plt

shaped, blind = (np.array([row.final_energy for row in dataset.rows(arm)]) for arm in ("shaped", "blind"))
print(f"final energy, nats per token: shaped {shaped.mean():.3f}, blind {blind.mean():.3f}")

figure, axes = plt.subplots(figsize=(7, 3.5), layout="constrained")
axes.plot(row.step_energy, color="#0072B2", alpha=0.4, marker=".", linestyle="none")
axes.plot(row.step_energy[np.arange(len(row.step_choice)), row.step_choice], color="#D55E00", marker=".", label="the one kept")
axes.set_xlabel("shaped step")
axes.set_ylabel("energy, nats per token")
axes.legend()
figure.savefig("quickstart/energies.png")

# %% [markdown]
# ## Distil
#
# The student is the teacher's copy, told how large its step is, and learns from the shards alone. A real run takes thousands of
# trajectories and updates; the same call, or `tsdfm-pipeline distill`, goes on where it was cut.

# %%
settings = DistillConfig(data=DataConfig(paths=["quickstart/data"], arm="shaped"), budgets={4: 1, 8: 1},
                         optim=DistillOptim(steps=4, batch_size=8, log_every=2))
student = distill(settings, "quickstart/student", lambda update, scalars: print(f"update {update}: loss {scalars['loss']:.3f}"))

# %% [markdown]
# Your own student needs no more than the windows (t, t + dt] of the same shards:

# %%
from torch.utils.data import DataLoader

windows = batches("quickstart/data", budgets={8: 1.0}, updates=2, batch_size=4)
for batch in DataLoader(windows, batch_size=None):
    known = batch.target >= 0  # predict these tokens from batch.x_t, batch.t and batch.dt
    print(f"{tuple(batch.x_t.shape)} tokens at t = {batch.t.tolist()}, {int(known.sum())} of them jump within dt = {batch.dt[0]:g}")

# %% [markdown]
# ## Sample
#
# A judge, a language model that had no part in this, says how surprising it finds the texts.

# %%
texts = sample(SampleConfig(model="quickstart/student", number=2, rollout=RolloutConfig(steps=8)))
print(*texts, sep="\n---\n")
for judge, found in score(texts).items():
    print(f"{judge}: perplexity {found.perplexity:.1f}, entropy {found.entropy_bits:.2f} bits")
