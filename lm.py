"""Our models as lm-eval asks for them: log-likelihoods of texts, and the likeliest text behind a context.

A text is scored as lm-eval's own class for models of transformers scores it with a model that export.py wrote. What is
too long is cut from the left to seq_len. A text without context begins behind end-of-text, as documents do in our data;
one with a context begins with its first word. Rows that pad the vocabulary are in the softmax, as in every loss, and
never drawn.
"""

import itertools
import math

import numpy as np
import torch
import torch.nn.functional as F
from lm_eval import utils
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs
from tqdm import tqdm

from config import Mistake
from sample import generate
from vocab import TOKENIZERS, encoder

BATCH_TOKENS = 16_384  # in a forward pass, padding included


class OurModel(TemplateLM):
    """A model as lm-eval asks for it. TemplateLM makes tokens of contexts and continuations by `tok_encode`."""

    def __init__(self, model, tokenizer):
        super().__init__()
        spec = TOKENIZERS[tokenizer]
        self.model, self.encode, self.words, self.end = model, encoder(tokenizer), spec.token_bytes(), spec.eot_id
        self.seq_len, self.at_once = model.shape.seq_len, max(1, BATCH_TOKENS // model.shape.seq_len)
        self._device = model.cos.device

    @property
    def eot_token_id(self):
        return self.end

    def tok_encode(self, string, add_special_tokens=None, **kwargs):
        return [int(token) for token in self.encode(string)]

    def _loglikelihood_tokens(self, requests, disable_tqdm=False, **kwargs):
        """[(what was asked, context, continuation), ...] in tokens -> [(its log-likelihood in nats, is it greedy)]."""
        found, texts = [None] * len(requests), [context + continuation for _, context, continuation in requests]
        longest_first = sorted(range(len(texts)), key=lambda i: -len(texts[i]))
        with tqdm(total=len(texts), desc="Running loglikelihood requests", disable=disable_tqdm) as bar:
            for start in range(0, len(texts), self.at_once):
                batch = longest_first[start : start + self.at_once]
                rows = [torch.tensor(texts[i][-self.seq_len - 1 :]) for i in batch]
                x = torch.nn.utils.rnn.pad_sequence([row[:-1] for row in rows], batch_first=True)  # (B, T)
                hidden = self.model.hidden(x.to(self.device))  # (B, T, C)
                for i, row, h in zip(batch, rows, hidden, strict=True):
                    n = len(requests[i][2])
                    if not 0 < n <= self.seq_len:
                        raise Mistake(f"--tasks: a continuation has {n} tokens; expected 1 to seq_len={self.seq_len}")
                    logits = self.model.head(h[len(row) - 1 - n : len(row) - 1]).float()  # (n, V)
                    targets = row[-n:].to(self.device)
                    loss = F.cross_entropy(logits, targets, reduction="sum").item()
                    found[i] = -loss, torch.equal(logits.argmax(dim=-1), targets)
                bar.update(len(batch))
        return found

    def loglikelihood_rolling(self, requests, disable_tqdm=False):
        """The log-likelihood of each whole text, in windows of seq_len tokens that score every token once."""
        pieces, counts = [], []
        for (text,) in (request.args for request in requests):
            windows = utils.get_rolling_token_windows(self.tok_encode(text), self.end, self.seq_len, context_len=1)
            own = [(None, *utils.make_disjoint_window(window)) for window in windows]
            pieces += own
            counts.append(len(own))
        found = iter(self._loglikelihood_tokens(pieces, disable_tqdm))
        return [math.fsum(value for value, _ in itertools.islice(found, n)) for n in counts]

    def generate_until(self, requests, disable_tqdm=False):
        """The likeliest text behind each context, token by token, up to what ends it. A batch has contexts of a length.

        A context is cut so that what is to come fits behind it. Where that would leave less than half of seq_len, half
        of seq_len stays, and the model's window moves on as in sample.py.
        """
        asked, texts = [], [None] * len(requests)
        for i, (text, options) in enumerate(request.args for request in requests):
            options = normalize_gen_kwargs(options, default_max_gen_toks=256)
            n, stops = options["max_gen_toks"], tuple(stop.encode() for stop in options["until"] if stop)
            context = (self.tok_encode(text) or [self.end])[-max(self.seq_len - n, self.seq_len // 2, 1) :]
            asked.append(((len(context), n, stops), i, context))
        with tqdm(total=len(texts), desc="Running generate_until requests", disable=disable_tqdm) as bar:
            for (_, n, stops), alike in itertools.groupby(sorted(asked, reverse=True), key=lambda request: request[0]):
                _, numbers, contexts = zip(*alike, strict=True)
                for start in range(0, len(numbers), self.at_once):
                    here = slice(start, start + self.at_once)
                    for i, text in zip(numbers[here], self.write(contexts[here], n, stops), strict=True):
                        texts[i] = text
                        bar.update()
        return texts

    def write(self, contexts, n, stops):
        """Up to n tokens behind each of the contexts, which are equally long, as text up to the first stop (bytes)."""
        texts, going = [b"" for _ in contexts], set(range(len(contexts)))
        x = torch.tensor(contexts, device=self.device)
        for new in generate(self.model, x, n, lambda position: np.zeros(1), temperature=0):
            for i, token in enumerate(new.tolist()):
                if i in going:
                    texts[i] += self.words[token]  # of end-of-text it is nothing
                    if token == self.end or any(stop in texts[i] for stop in stops):
                        going.remove(i)
            if not going:
                break
        for stop in stops:
            texts = [text.split(stop)[0] for text in texts]
        return [text.decode("utf-8", "replace") for text in texts]
