"""The papers behind a dataset or a student, as the BibTeX of its card."""

BIBTEX = """```bibtex
@misc{tsdfm,
  title = {Trajectory as the Teacher: Few-Step Discrete Flow Matching via Energy-Navigated Distillation},
  author = {Karimi Monsefi, Amin and Culver, Dominic and Bhendawade, Nikhil and Ciosici, Manuel Rafael and Zhang, Yizhe and
            Belousova, Irina},
  year = {2026}, eprint = {2605.07924}, archivePrefix = {arXiv},
}
@misc{fsdfm,
  title = {{FS-DFM}: Fast and Accurate Long Text Generation with Few-Step Diffusion Language Models},
  author = {Karimi Monsefi, Amin and Bhendawade, Nikhil and Ciosici, Manuel Rafael and Culver, Dominic and Zhang, Yizhe and
            Belousova, Irina},
  year = {2025}, eprint = {2509.20624}, archivePrefix = {arXiv},
}
@misc{dfm,
  title = {Discrete Flow Matching},
  author = {Gat, Itai and Remez, Tal and Shaul, Neta and Kreuk, Felix and Chen, Ricky T. Q. and Synnaeve, Gabriel and
            Adi, Yossi and Lipman, Yaron},
  year = {2024}, eprint = {2407.15595}, archivePrefix = {arXiv},
}
@misc{edlm,
  title = {Energy-Based Diffusion Language Models for Text Generation},
  author = {Xu, Minkai and Geffner, Tomas and Kreis, Karsten and Nie, Weili and Xu, Yilun and Leskovec, Jure and
            Ermon, Stefano and Vahdat, Arash},
  year = {2024}, eprint = {2410.21357}, archivePrefix = {arXiv},
}
```"""
