"""What is said of all studies, and the numbers that are from elsewhere, with the reason of each."""

from tables import over_seeds, where

from .text import FOLDER, Study, read, size, spread, values


def overview():
    """What is said of all studies, above the first of them."""
    example = where(read("lr_sensitivity"), lr=0.016)
    phrases = [f"A loss such as {spread(over_seeds(example, schedule='onecycle'))} is"]
    sizes = [n for study in ("ladder", "mup", "supar", "data_limited") for n in values(read(study), "n_params")]
    files = [(FOLDER.parent / name).read_text(encoding="utf-8") for name in ("train.py", "model.py")]
    lengths = [round(len(text.splitlines()), -1) for text in files]
    readme = [
        f"The studies train at most {size(max(sizes))} parameters",
        f"` is one training run, read from top to bottom in {lengths[0]} lines; ` has {lengths[1]}",
    ]
    return Study("all", "", "", [], phrases, readme=readme)


# ----------------------------------------------------------------------------------------------------------------------
# Numbers that are from elsewhere

PAPER, CONFIG, MEASURED = "the paper", "the options of a config", "timed or counted once, on the machine that is named"
LENGTHS = "Schedules over lengths"
README, GUIDE, RESULTS = "README.md", "GUIDE.md", "results/README.md"

# (page, section or None for all of them, where from, phrases)
GIVEN = (
    (README, None, PAPER, ["equal: better by 0.0009", "1-sqrt, by 0.002 to 0.010", "20%, or less in longer runs"]),
    (README, None, PAPER, ["74% to 90% of the way to cosine", "the paper's 124M model", "for its 30,000 steps"]),
    (README, None, PAPER, ["its runs of 1B and 8B"]),
    (README, None, CONFIG, ["1.1M parameters", "6B tokens"]),
    (README, None, "requirements.txt and pyproject.toml", ["the CPU build of torch 2.13.0", "with Python 3.11"]),
    (README, None, MEASURED, ["in 5.4 minutes on two cores", "at 458,000 tokens/s, measured over 16 steps"]),
    (README, None, MEASURED, ["1.9 hours for"]),
    (README, None, "how it works", ["trained from step 0", "from 1 to 0"]),
    (README, None, "tests/README.md", ["2, 4 or 8 ranks"]),
    (RESULTS, "", CONFIG, ["the first 65,536 bytes of the validation split", "the last 20% of a run", "hold 95%"]),
    (RESULTS, "Noise", CONFIG, ["131M bytes", "a beta2 of 0.99", "The aim was 0.003", "missed by a little at 1,480"]),
    (RESULTS, LENGTHS, CONFIG, ["(4, 8 and 32 tokens per parameter)", "first 500,000", "peaks of 4e-3 and 8e-3"]),
    (RESULTS, LENGTHS, CONFIG, ["of 1.6e-2 at the two shorter lengths", "At 2,400 steps", "the last 60"]),
    (RESULTS, LENGTHS, CONFIG, ["half of the others' at 2,400 steps"]),
    (RESULTS, LENGTHS, CONFIG, ["1.6e-2 was not tried at 2,400 steps", "a cosine to 10%", "At 300 steps"]),
    (RESULTS, LENGTHS, CONFIG, ["a peak of 8e-3", "the cooldown from 8e-3 above"]),
    (RESULTS, "A ladder in fp32", CONFIG, ["2,048 tokens per step", "262,144 bytes", "tried at 3.2e-2"]),
    (RESULTS, "A ladder in fp32", "the table above it", ["from 1,057 steps on", "between 8e-3 and 1.6e-2"]),
    (RESULTS, "A trunk used ten times as far", CONFIG, ["At 600 steps the best peak is 8e-3", "for 600 steps loses"]),
    (RESULTS, "A trunk used ten times as far", CONFIG, ["on to 6,000 steps", "beside one of 4e-3", "131,072 bytes"]),
    (RESULTS, "A trunk used ten times as far", CONFIG, ["a cosine from 1.6e-2", "every 60 steps", "runs of 4e-3"]),
    (RESULTS, "A trunk used ten times as far", CONFIG, ["their cooldowns over 20%"]),
    (RESULTS, "The demo", CONFIG, ["the first 32,768 bytes", "the cooldown of 900 steps", "the one peak here, 4e-3"]),
    (RESULTS, "A trunk and two branches by hand", CONFIG, ["1.1M parameters"]),
    (RESULTS, "Shape of the cooldown", PAPER, ["by 0.002 to 0.010, in runs of 25,000 and 50,000 steps"]),
    (RESULTS, "Length of the cooldown", PAPER, ["a cooldown beyond 20% gains nothing"]),
    (RESULTS, "Data of the cooldown", CONFIG, ["the first 65,536 bytes of both validation splits"]),
    (RESULTS, "Data of the cooldown", MEASURED, ["3.9 minutes in all on two shared cores"]),
    (RESULTS, "Data of the cooldown", MEASURED, ["lines of 40 characters or more, 42% stand word for word"]),
    (RESULTS, "Data of the cooldown", MEASURED, ["(7% with the standard library"]),
    (RESULTS, "Sizes and lengths", MEASURED, ["72 of the cosines ran on another Xeon, with torch 2.11"]),
    (RESULTS, "Sizes and lengths", PAPER, ["33M to 360M parameters differ by -0.0009", "The paper has 0.99 x + 0.23"]),
    (RESULTS, "Tuning to a certificate", CONFIG, ["From a peak of 8e-3 and a weight decay of 0.1"]),
    (RESULTS, "Optimizers", CONFIG, ["The studies above all have 0.9", "which hold 95% of the error"]),
    (RESULTS, "Optimizers", "arithmetic", ["Newton-Schulz is 5 (4 m^2 n + 2 m^3) FLOPs for a matrix of m x n"]),
    (RESULTS, "Optimizers", "arithmetic", ["For the paper's 124M model that is 1.7e12 per step, 2.2% of the 6 x"]),
    (RESULTS, "Optimizers", "arithmetic", ["123.6M x 102,400 tokens"]),
    (RESULTS, "Optimizers", MEASURED, ["take 33 ms with Muon, 135 with SOAP and 157 with Kron"]),
    (RESULTS, "Optimizers", MEASURED, ["a step of 102,400 tokens takes 223 ms"]),
    (RESULTS, "Optimizers", "Wen et al.", ["At 130M parameters"]),
    (RESULTS, "Schedule-Free", MEASURED, ["halted for 80 minutes"]),
    (RESULTS, "Learning rates over widths: muP", CONFIG, ["with muP from 32 channels", "`, is 1 at the base"]),
    (RESULTS, "Learning rates over widths: muP", CONFIG, ["a base of 32 channels"]),
    (RESULTS, "Learning rates over densities: SuPar", CONFIG, ["64 channels"]),
    (RESULTS, "Few data", MEASURED, ["The samples took 2.4 minutes"]),
    (RESULTS, "Few data", "Kim et al.", ["(in the paper 83%)"]),
)  # fmt: skip


# Sections whose numbers are all from elsewhere: none of them is of a study in results/
ELSEWHERE = {(RESULTS, "Speed"): MEASURED, (GUIDE, "Systems"): MEASURED, (GUIDE, "Optimizers"): "Wen et al., options"}
ELSEWHERE |= {
    (GUIDE, section): "how it works"
    for section in ("Models out and in", "Benchmarks", "Few data, much compute", "GPUs")
}
