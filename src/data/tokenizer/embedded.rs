//! The tokenizer in a GGUF file's metadata, written out as a `tokenizer.json`.
//!
//! GGUF names a model (`tokenizer.ggml.model`: `gpt2` for byte-level BPE, `llama` for SentencePiece BPE) and for the former
//! a way to split text before merging (`tokenizer.ggml.pre`). Names, groups and expressions are those of
//! `llama-vocab.cpp` in llama.cpp; where the original `tokenizer.json` of a family says more (NFC for Qwen), it is followed.

use super::added_token;
use crate::gguf::{Gguf, Value as GgufValue};
use anyhow::{Context, Result, anyhow, bail, ensure};
use serde_json::{Map, Value, json};
use std::collections::HashMap;

/// Kinds of entries in `tokenizer.ggml.token_type`; the others are 4 (user defined) and 5 (unused).
const NORMAL: u64 = 1;
const UNKNOWN: u64 = 2;
const CONTROL: u64 = 3;
const USER_DEFINED: u64 = 4;
const BYTE: u64 = 6;

const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const GPT4O: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// What llama.cpp does where a file gives `default` or nothing: these, one after the other.
const DEFAULT: [&str; 4] = [
    r"[\p{P}\$\+<=>\^~\|]+",
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)",
    r"\p{N}+",
    r"[0-9][0-9][0-9]",
];

/// The expressions that split words from each other, for [`super::cut`].
pub const PATTERNS: [&str; 5] = [GPT2, LLAMA3, QWEN2, GPT4O, TEKKEN];

/// Names of `tokenizer.ggml.pre` that split alike, and the pre-tokenizers that do it.
type Family = (&'static [&'static str], fn() -> Vec<Value>);

const FAMILIES: [Family; 7] = [
    (&["default"], || DEFAULT.map(split).into()),
    (
        &["gpt-2", "gpt2", "phi-2", "mpt", "olmo", "jais", "jina-es", "jina-de", "roberta-bpe"],
        || vec![split(GPT2)],
    ),
    (&["smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"], || {
        vec![json!({"type": "Digits", "individual_digits": true}), split(GPT2)]
    }),
    (
        &[
            "llama-bpe",
            "llama3",
            "llama-v3",
            "falcon3",
            "falcon-h1",
            "pixtral",
            "dbrx",
            "smaug-bpe",
        ],
        || vec![split(LLAMA3)],
    ),
    (&["qwen2", "deepseek-r1-qwen", "megrez", "stablelm2", "hunyuan"], || vec![split(QWEN2)]),
    (&["gpt-4o", "llama4"], || vec![split(GPT4O)]),
    (&["tekken"], || vec![split(TEKKEN)]),
];

/// The `tokenizer.json` and the `tokenizer_config.json` that say what `gguf` says.
///
/// # Errors
///
/// When the file holds no tokenizer, or one of a kind that is not known here.
pub fn read(gguf: &Gguf) -> Result<(Value, Map<String, Value>)> {
    let vocabulary = Vocabulary::read(gguf)?;
    let flag = |name: &str, default: bool| {
        let value = gguf.metadata.get(&format!("tokenizer.ggml.{name}"));
        value.and_then(GgufValue::as_bool).unwrap_or(default)
    };
    let kind = gguf.get_str("tokenizer.ggml.model")?;
    let mut json = match kind {
        "gpt2" => {
            let pre = gguf.metadata.get("tokenizer.ggml.pre").and_then(GgufValue::as_str);
            byte_level(&vocabulary, &merges(gguf)?, pre.unwrap_or("default"))?
        }
        "llama" => {
            let unknown = gguf.get_u64("tokenizer.ggml.unknown_token_id").ok();
            sentencepiece(&vocabulary, unknown, flag("add_space_prefix", true))
        }
        other => bail!(
            "tokenizer.ggml.model: expected `gpt2` or `llama`, found `{other}`\n  help: give the tokenizer.json of the \
             original model"
        ),
    };
    json["version"] = "1.0".into();
    json["added_tokens"] = vocabulary.added_tokens();
    let mut config = Map::new();
    if flag("add_bos_token", kind == "llama") {
        let id = gguf.get_u64("tokenizer.ggml.bos_token_id")?;
        let bos = vocabulary.tokens.get(id as usize).ok_or_else(|| {
            anyhow!("tokenizer.ggml.bos_token_id: expected an id of the vocabulary, found {id}")
        })?;
        json["post_processor"] = prepend_token(id, bos);
        config.insert("add_bos_token".into(), true.into());
    }
    if let Ok(template) = gguf.get_str("tokenizer.chat_template") {
        config.insert("chat_template".into(), template.into());
    }
    Ok((json, config))
}

struct Vocabulary<'a> {
    /// By id.
    tokens: Vec<&'a str>,
    kinds: Vec<u64>,
    scores: Option<Vec<f64>>,
}

impl<'a> Vocabulary<'a> {
    fn read(gguf: &'a Gguf) -> Result<Vocabulary<'a>> {
        let tokens = strings(gguf, "tokenizer.ggml.tokens")?;
        let numbers = |key: &str| -> Result<Option<Vec<f64>>> {
            if !gguf.metadata.contains_key(key) {
                return Ok(None);
            }
            let values: Vec<f64> =
                gguf.get_array(key)?.iter().filter_map(GgufValue::as_f64).collect();
            ensure!(
                values.len() == tokens.len(),
                "{key}: expected {} numbers, found {}",
                tokens.len(),
                values.len()
            );
            Ok(Some(values))
        };
        let kinds = numbers("tokenizer.ggml.token_type")?;
        let kinds = kinds.map_or(vec![NORMAL; tokens.len()], |kinds| {
            kinds.into_iter().map(|kind| kind as u64).collect()
        });
        Ok(Vocabulary { scores: numbers("tokenizer.ggml.scores")?, tokens, kinds })
    }

    fn iter(&self) -> impl Iterator<Item = (u32, &'a str, u64)> {
        (0..).zip(&self.tokens).zip(&self.kinds).map(|((id, &token), &kind)| (id, token, kind))
    }

    /// Token -> id. Of a token that is there twice the first counts.
    fn to_json(&self) -> Map<String, Value> {
        let mut vocab = Map::new();
        for (id, token, _) in self.iter() {
            vocab.entry(token).or_insert(id.into());
        }
        vocab
    }

    /// Tokens that are found in a text before anything else is done to it.
    fn added_tokens(&self) -> Value {
        self.iter()
            .filter(|(_, _, kind)| [UNKNOWN, CONTROL, USER_DEFINED].contains(kind))
            .map(|(id, token, kind)| added_token(id, token, kind != USER_DEFINED))
            .collect()
    }
}

fn byte_level(vocabulary: &Vocabulary, merges: &[(&str, &str)], pre: &str) -> Result<Value> {
    let Some((names, splits)) = FAMILIES.iter().find(|(names, _)| names.contains(&pre)) else {
        let known: Vec<_> = FAMILIES.iter().flat_map(|(names, _)| *names).copied().collect();
        bail!(
            "tokenizer.ggml.pre: expected one of {}, found `{pre}`\n  help: give the tokenizer.json of the original model",
            known.join(", ")
        );
    };
    let mut steps = splits();
    steps.push(json!({
        "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false,
    }));
    let normalizer = if names.contains(&"qwen2") { json!({"type": "NFC"}) } else { Value::Null };
    Ok(json!({
        "normalizer": normalizer,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps},
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {
            "type": "BPE",
            "vocab": vocabulary.to_json(),
            "merges": merges,
            // Llama 3 takes a part that is in the vocabulary whole, even where merges do not lead to it.
            "ignore_merges": names.contains(&"llama-bpe") || pre == "tekken",
        },
    }))
}

fn sentencepiece(vocabulary: &Vocabulary, unknown: Option<u64>, add_space_prefix: bool) -> Value {
    let unknown = unknown.and_then(|id| vocabulary.tokens.get(id as usize));
    // The rules of the first Llama's tokenizer.json: a space before each stretch of text, also after a special token.
    let mut normalizers =
        vec![json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"})];
    if add_space_prefix {
        normalizers.insert(0, json!({"type": "Prepend", "prepend": "▁"}));
    }
    json!({
        "normalizer": {"type": "Sequence", "normalizers": normalizers},
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"},
            {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": u8::from(add_space_prefix), "stop": 0},
        ]},
        "model": {
            "type": "BPE",
            "vocab": vocabulary.to_json(),
            "merges": merges_of_scores(vocabulary),
            "unk_token": unknown,
            "fuse_unk": true,
            "byte_fallback": vocabulary.kinds.contains(&BYTE),
        },
    })
}

/// Merges that do what scores do: SentencePiece joins the pair whose joined piece scores best, so every way to split a piece
/// into two pieces is a merge, in the order of the pieces' scores.
fn merges_of_scores<'a>(vocabulary: &Vocabulary<'a>) -> Vec<(&'a str, &'a str)> {
    // Control tokens and bytes are no pieces: a text must not merge its way to them.
    let pieces: HashMap<&str, u32> = vocabulary
        .iter()
        .filter(|(_, _, kind)| *kind == NORMAL)
        .map(|(id, token, _)| (token, id))
        .collect();
    let mut order: Vec<(&str, u32)> = pieces.iter().map(|(&token, &id)| (token, id)).collect();
    let score = |id: u32| vocabulary.scores.as_ref().map_or(-f64::from(id), |s| s[id as usize]);
    order.sort_by(|a, b| score(b.1).total_cmp(&score(a.1)).then(a.1.cmp(&b.1)));

    let mut merges = Vec::new();
    for (token, _) in order {
        let mut ways: Vec<_> = token
            .char_indices()
            .skip(1)
            .map(|(at, _)| token.split_at(at))
            .filter_map(|(a, b)| Some(((*pieces.get(a)?, *pieces.get(b)?), (a, b))))
            .collect();
        ways.sort_by_key(|(ids, _)| *ids);
        merges.extend(ways.into_iter().map(|(_, pair)| pair));
    }
    merges
}

fn split(pattern: &str) -> Value {
    json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false})
}

/// A post-processor for users of the saved file: BOS before a text. [`super::Tokenizer::encode`] does not apply it.
fn prepend_token(id: u64, token: &str) -> Value {
    let special = json!({"SpecialToken": {"id": token, "type_id": 0}});
    let sequence = |id: &str, kind: u32| json!({"Sequence": {"id": id, "type_id": kind}});
    json!({
        "type": "TemplateProcessing",
        "single": [special, sequence("A", 0)],
        "pair": [special, sequence("A", 0), sequence("B", 1)],
        "special_tokens": {token: {"id": token, "ids": [id], "tokens": [token]}},
    })
}

fn strings<'a>(gguf: &'a Gguf, key: &str) -> Result<Vec<&'a str>> {
    let values = gguf.get_array(key)?.iter().map(GgufValue::as_str);
    values.collect::<Option<_>>().with_context(|| format!("{key}: expected an array of strings"))
}

fn merges(gguf: &Gguf) -> Result<Vec<(&str, &str)>> {
    let key = "tokenizer.ggml.merges";
    strings(gguf, key)?
        .into_iter()
        .map(|merge| {
            let pair = merge.split_once(' ');
            pair.ok_or_else(|| {
                anyhow!("{key}: expected two tokens with a space between, found `{merge}`")
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::tests::small_bpe;
    use super::super::{Tokenizer, bytes_json, cut, load};
    use super::*;
    use std::path::{Path, PathBuf};
    use tokenizers::{OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer};

    fn workspace() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
    }

    /// Against `sentencepiece` 0.2.3 itself. The file and the ids were made with:
    ///
    /// ```python
    /// import json, sentencepiece as spm, gguf
    /// spm.SentencePieceTrainer.train(input="train.txt", model_prefix="m", vocab_size=420, model_type="bpe", byte_fallback=True,
    ///     normalization_rule_name="identity", remove_extra_whitespaces=False, allow_whitespace_only_pieces=True,
    ///     split_digits=True, user_defined_symbols=["<turn>"], num_threads=1)
    /// sp = spm.SentencePieceProcessor(model_file="m.model")
    /// n = sp.get_piece_size()
    /// kind = lambda i: 6 if sp.is_byte(i) else 2 if sp.is_unknown(i) else 3 if sp.is_control(i) else 4 if sp.id_to_piece(i) == "<turn>" else 1
    /// w = gguf.GGUFWriter("data_sentencepiece.gguf", "llama")
    /// w.add_tokenizer_model("llama")
    /// w.add_token_list([sp.id_to_piece(i) for i in range(n)])
    /// w.add_token_scores([sp.get_score(i) for i in range(n)])
    /// w.add_token_types([kind(i) for i in range(n)])
    /// w.add_bos_token_id(sp.bos_id()); w.add_eos_token_id(sp.eos_id()); w.add_unk_token_id(sp.unk_id())
    /// w.write_header_to_file(); w.write_kv_data_to_file(); w.write_tensors_to_file(); w.close()
    /// texts = ["The fog came in.", "  two spaces,   three", "line\nbreak\ttab", "forty-2 fathoms 1234", "é 漢 🦀 ß", "", " ", "x",
    ///          "thethethe theretherethere", "▁ is a piece of its own", open("text.txt").read()]
    /// json.dump([{"text": t, "ids": sp.encode(t)} for t in texts], open("data_sentencepiece.json", "w"), ensure_ascii=False)
    /// for t in texts[:-1]: print(repr(t), sp.encode(t)[:30])
    /// print(n, repr(sp.decode(sp.encode("  two"))))
    /// ```
    #[test]
    fn sentencepiece_scores_become_the_same_ids() {
        let path = workspace().join("tests/data/data_sentencepiece.gguf");
        let tokenizer = Tokenizer::open(&path).unwrap();
        let cases = include_str!("../../../tests/data/data_sentencepiece.json");
        for case in serde_json::from_str::<Vec<Value>>(cases).unwrap() {
            let text = case["text"].as_str().unwrap();
            let ids = tokenizer.encode(text).unwrap();
            assert_eq!(json!(ids), case["ids"], "{text:?}");
            assert_eq!(tokenizer.decode(&ids).unwrap(), text.replace('▁', " "));
        }
        assert_eq!((tokenizer.bos_id(), tokenizer.eos_id()), (Some(1), Some(2)));
        assert_eq!(tokenizer.vocab_size(), 420);
        // A user-defined token is found first; control tokens are not reached by merging.
        let ids = tokenizer.encode("a<turn>b<s").unwrap();
        assert!(ids.contains(&3) && !ids.contains(&1));

        let folder = tempfile::tempdir().unwrap();
        tokenizer.save(folder.path()).unwrap();
        let saved = Tokenizer::open(folder.path()).unwrap();
        assert_eq!(saved.digest().unwrap(), tokenizer.digest().unwrap());
    }

    fn family(pre: &str) -> Value {
        let vocabulary = Vocabulary { tokens: vec!["a"], kinds: vec![NORMAL], scores: None };
        byte_level(&vocabulary, &[], pre).unwrap()
    }

    /// Expected parts from Python's `regex.findall(pattern, text)` with the patterns of `tiktoken` and `transformers`.
    #[test]
    fn each_family_splits_as_its_own_library_does() {
        let check = |pre: &str, expected: &[&str]| {
            let text = "I'll GO'LL 1234 x+=[];\r\n\n  end  é";
            assert_eq!(expected.concat(), text);
            let tokenizer = load(family(pre).to_string().as_bytes()).unwrap();
            let mut parts = PreTokenizedString::from(text);
            tokenizer.get_pre_tokenizer().unwrap().pre_tokenize(&mut parts).unwrap();
            let found: Vec<&str> = parts
                .get_splits(OffsetReferential::Original, OffsetType::Byte)
                .into_iter()
                .map(|(_, (start, end), _)| &text[start..end])
                .collect();
            assert_eq!(found, expected, "{pre}");
        };
        check(
            "default",
            &[
                "I", "'", "ll", " GO", "'", "LL", " ", "123", "4", " x", "+=[];", "\r\n\n ",
                " end", " ", " é",
            ],
        );
        check(
            "gpt-2",
            &["I", "'ll", " GO", "'", "LL", " 1234", " x", "+=[];", "\r\n\n ", " end", " ", " é"],
        );
        check(
            "smollm",
            &[
                "I", "'ll", " GO", "'", "LL", " ", "1", "2", "3", "4", " x", "+=[];", "\r\n\n ",
                " end", " ", " é",
            ],
        );
        check(
            "llama-bpe",
            &[
                "I",
                "'ll",
                " GO",
                "'LL",
                " ",
                "123",
                "4",
                " x",
                "+=[];\r\n\n",
                " ",
                " end",
                " ",
                " é",
            ],
        );
        check(
            "qwen2",
            &[
                "I",
                "'ll",
                " GO",
                "'LL",
                " ",
                "1",
                "2",
                "3",
                "4",
                " x",
                "+=[];\r\n\n",
                " ",
                " end",
                " ",
                " é",
            ],
        );
        check(
            "gpt-4o",
            &["I'll", " GO'LL", " ", "123", "4", " x", "+=[];\r\n\n", " ", " end", " ", " é"],
        );
        check(
            "tekken",
            &[
                "I",
                "'ll",
                " GO",
                "'LL",
                " ",
                "1",
                "2",
                "3",
                "4",
                " x",
                "+=[];\r\n\n",
                " ",
                " end",
                " ",
                " é",
            ],
        );
    }

    #[test]
    fn an_unknown_family_is_an_error() {
        let vocabulary = Vocabulary { tokens: vec![], kinds: vec![], scores: None };
        let error = byte_level(&vocabulary, &[], "smollm9").unwrap_err().to_string();
        assert!(
            error.contains("found `smollm9`") && error.contains("smollm, starcoder"),
            "{error}"
        );
    }

    /// Cutting is a matter of speed alone, for every family that allows it.
    #[test]
    fn cut_texts_have_the_ids_of_whole_ones() {
        let words = [
            "the ", "inn's", " THE", "\n", " x1 ", "  ", " a b", ".\r\n\n", "don't", " é", "12345",
            " th in",
        ];
        let mut state = 1u64;
        let mut text = String::new();
        while text.len() < 400_000 {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            text.push_str(words[(state >> 33) as usize % words.len()]);
        }
        assert!(cut::cut(&text).count() > 8);
        let can_cut =
            |model: &Value| cut::is_safe_for(&load(model.to_string().as_bytes()).unwrap());
        for pre in ["default", "gpt-2", "smollm", "llama-bpe", "gpt-4o", "tekken", "qwen2"] {
            let mut model = small_bpe();
            model["pre_tokenizer"] = family(pre)["pre_tokenizer"].clone();
            model["truncation"] = Value::Null;
            let model = load(model.to_string().as_bytes()).unwrap();
            let whole = model.encode_fast(text.as_str(), false).unwrap().get_ids().to_vec();
            let tokenizer = Tokenizer::new(model, Map::new(), [None; 3]).unwrap();
            assert_eq!(tokenizer.can_cut, pre != "default", "{pre}");
            assert_eq!(tokenizer.encode(&text).unwrap(), whole, "{pre}");
        }
        assert!(can_cut(&small_bpe()));
        assert!(!can_cut(&family("qwen2")), "normalized first");
        let mut model = small_bpe();
        model["added_tokens"][0]["lstrip"] = true.into();
        assert!(!can_cut(&model), "an added token that takes spaces");
        assert!(!can_cut(&bytes_json()), "not split at all");
    }

    /// The tokenizer of SmolLM2-135M-Instruct, against ids from forty lines of Python that merge by rank
    /// what the `regex` module splits, with vocabulary and merges read by the Python package `gguf`.
    #[test]
    fn smollm2_gives_the_ids_of_another_implementation() {
        let folder = workspace().join(".models/smollm2");
        let files = std::fs::read_dir(&folder).into_iter().flatten().flatten();
        if !files.map(|f| f.path()).any(|path| path.extension().is_some_and(|e| e == "gguf")) {
            panic!(
                "{}: expected SmolLM2's .gguf file\n  help: run tools/fetch_smollm2.sh (`make test` does)",
                folder.display()
            )
        }
        let tokenizer = Tokenizer::open(&folder).unwrap();
        let text = "The keeper's log, 12 March 1907:\n\n  \"We'll sound it again—40 fathoms, naïve as that is.\"\t<|im_end|> été 漢字 🦀";
        let expected = [
            504, 40061, 506, 1993, 28, 216, 33, 34, 3903, 216, 33, 41, 32, 39, 42, 8866, 476, 1882,
            3060, 2139, 357, 1163, 1265, 36, 32, 275, 679, 1388, 28, 15486, 46494, 347, 338, 314,
            1270, 197, 2, 216, 19380, 2756, 17097, 137, 112, 36518, 15107, 116, 218,
        ];
        let ids = tokenizer.encode(text).unwrap();
        assert_eq!(ids, expected);
        assert_eq!(tokenizer.decode(&ids).unwrap(), text);
        assert_eq!(tokenizer.vocab_size(), 49152);
        let special = [tokenizer.bos_id(), tokenizer.eos_id(), tokenizer.pad_id()];
        assert_eq!(special, [Some(1), Some(2), Some(2)]);
        assert!(tokenizer.chat_template().unwrap().contains("<|im_start|>"));
        // A long text is cut, and has the same ids.
        let long = text.repeat(2000);
        assert_eq!(tokenizer.encode(&long).unwrap(), ids.repeat(2000));
    }
}
