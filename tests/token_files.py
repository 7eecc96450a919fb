"""Small tokenizers as sentencepiece and tokenizers train and save them."""

import io
from pathlib import Path
from typing import Any

TEXTS = ["pick up the red cube", "put the blue cube on the red cube\n", "From the left arm — to the right arm.", ""]
CORPUS = [text for text in TEXTS if text] * 20


def sentencepiece_model(path: Path) -> Any:
    import sentencepiece as library

    model = io.BytesIO()
    library.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS), model_writer=model, vocab_size=60, model_type="bpe", pad_id=0, unk_id=3,
        bos_id=2, eos_id=1, pad_piece="<pad>", bos_piece="<bos>", eos_piece="<eos>", minloglevel=2,
    )  # fmt: skip
    path.write_bytes(model.getvalue())
    return library.SentencePieceProcessor(model_file=str(path))


def hugging_face(path: Path) -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers

    library = Tokenizer(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<bos>", "<eos>"], initial_alphabet=alphabet, show_progress=False
    )
    library.train_from_iterator(CORPUS, trainer)
    # What others left in the file: none of it may cut or lengthen a text here.
    around = [("<bos>", 0), ("<eos>", 1)]
    library.post_processor = processors.TemplateProcessing("<bos> $A <eos>", special_tokens=around)
    library.enable_truncation(3)
    library.enable_padding(length=40)
    library.save(str(path))
    library.no_truncation()
    library.no_padding()
    return library
