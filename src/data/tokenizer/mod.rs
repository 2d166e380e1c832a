//! Text to token ids and back: a Hugging Face `tokenizer.json`, the tokenizer inside a GGUF file, or plain bytes.
//!
//! Ids are those of the `tokenizers` library for the same `tokenizer.json`; every kind can be saved as one. Encoding never
//! adds BOS or EOS (packing does, once a document) and never cuts or pads, whatever the file asks for.

mod cut;
mod embedded;

use crate::gguf::Gguf;
use anyhow::{Context, Result, anyhow, bail, ensure};
use rayon::prelude::*;
use serde_json::{Map, Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use tokenizers::Tokenizer as HuggingFace;

/// What [`Tokenizer::from_spec`] calls the byte tokenizer.
pub const BYTES: &str = "bytes";
/// Ids of the byte tokenizer, after the 256 bytes.
const BYTES_BOS: (u32, &str) = (256, "<|bos|>");
const BYTES_EOS: (u32, &str) = (257, "<|eos|>");
/// Files written by `transformers` say 1e30 where they know no maximum.
const MAX_BELIEVABLE_LENGTH: f64 = 1e9;

pub struct Tokenizer {
    model: Model,
    bos_id: Option<u32>,
    eos_id: Option<u32>,
    pad_id: Option<u32>,
    /// The content of `tokenizer_config.json`, as read or as made.
    config: Map<String, Value>,
    /// Whether [`cut::cut`] leaves this tokenizer's ids unchanged.
    can_cut: bool,
}

enum Model {
    /// One id a byte, without the library: a copy.
    Bytes,
    HuggingFace(Box<HuggingFace>),
}

impl Tokenizer {
    /// The word `bytes`, or a path for [`Tokenizer::open`].
    pub fn from_spec(spec: &str) -> Result<Tokenizer> {
        if spec == BYTES { Ok(Tokenizer::bytes()) } else { Tokenizer::open(Path::new(spec)) }
    }

    /// Loads the tokenizer of a folder (its `tokenizer.json`, or its only `.gguf`), a `tokenizer.json`, or a `.gguf` file.
    ///
    /// BOS, EOS and padding are those of `tokenizer_config.json`, then `special_tokens_map.json`, then `config.json`, beside
    /// the `tokenizer.json`, where these are present; a `null` in the first counts. There is no padding token unless a
    /// file names one.
    ///
    /// # Errors
    ///
    /// When nothing of the kind is there, when a file does not parse, when a special token is not in the vocabulary, or when
    /// a GGUF file's tokenizer is of a kind that is not known here.
    pub fn open(path: &Path) -> Result<Tokenizer> {
        let file = if path.is_dir() { file_in(path)? } else { path.to_path_buf() };
        ensure!(
            file.is_file(),
            "tokenizer {}: expected a folder, a tokenizer.json or a .gguf file, found nothing there\n  help: `{BYTES}` \
             names the byte tokenizer, which needs no file",
            path.display()
        );
        let tokenizer = match file.extension().is_some_and(|e| e == "gguf") {
            true => Tokenizer::from_gguf(&Gguf::open(&file)?),
            false => Tokenizer::from_json(&file),
        };
        tokenizer.with_context(|| format!("tokenizer {}", file.display()))
    }

    /// The byte tokenizer: ids 0 to 255 are bytes, 256 is BOS, 257 is EOS. Special tokens in a text are text to it.
    pub fn bytes() -> Tokenizer {
        let config = json!({
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": BYTES_BOS.1,
            "eos_token": BYTES_EOS.1,
            "split_special_tokens": true,
        });
        Tokenizer {
            model: Model::Bytes,
            bos_id: Some(BYTES_BOS.0),
            eos_id: Some(BYTES_EOS.0),
            pad_id: None,
            config: into_map(config),
            can_cut: false,
        }
    }

    /// The tokenizer in a GGUF file's metadata.
    ///
    /// # Errors
    ///
    /// When the file holds none, or one whose `tokenizer.ggml.model` is not `gpt2` or `llama`, or whose
    /// `tokenizer.ggml.pre` is not known.
    pub fn from_gguf(gguf: &Gguf) -> Result<Tokenizer> {
        let (model, config) = embedded::read(gguf)?;
        let model = load(&serde_json::to_vec(&model)?)?;
        let id = |name: &str| -> Result<Option<u32>> {
            let key = format!("tokenizer.ggml.{name}_token_id");
            match gguf.metadata.contains_key(&key) {
                true => Ok(Some(u32::try_from(gguf.get_u64(&key)?)?)),
                false => Ok(None),
            }
        };
        Tokenizer::new(model, config, [id("bos")?, id("eos")?, id("padding")?])
    }

    fn from_json(file: &Path) -> Result<Tokenizer> {
        let folder = file.parent().unwrap_or(Path::new("."));
        let model = load(&fs::read(file)?)?;
        let config = read_json(&folder.join("tokenizer_config.json"))?;
        let special_map = read_json(&folder.join("special_tokens_map.json"))?;
        let model_config = read_json(&folder.join("config.json"))?;
        let id = |name: &str| -> Result<Option<u32>> {
            for (file, map) in
                [("tokenizer_config.json", &config), ("special_tokens_map.json", &special_map)]
            {
                match map.get(&format!("{name}_token")) {
                    None => continue,
                    Some(Value::Null) => return Ok(None),
                    Some(token) => {
                        let text = token.get("content").unwrap_or(token).as_str();
                        let id = text.and_then(|text| model.token_to_id(text));
                        return id.map(Some).ok_or_else(|| {
                            anyhow!("{file}: {name}_token: expected a token of the vocabulary, found {token}")
                        });
                    }
                }
            }
            // A list, where several tokens end a text; its first is the one to write.
            let id = model_config.get(&format!("{name}_token_id"));
            let id = id.and_then(|id| id.as_array().map_or(Some(id), |list| list.first()));
            Ok(id.and_then(Value::as_u64).map(|id| id as u32))
        };
        let ids = [id("bos")?, id("eos")?, id("pad")?];
        Tokenizer::new(model, config, ids)
    }

    fn new(
        mut model: HuggingFace,
        config: Map<String, Value>,
        [bos_id, eos_id, pad_id]: [Option<u32>; 3],
    ) -> Result<Tokenizer> {
        for (name, id) in [("bos", bos_id), ("eos", eos_id), ("pad", pad_id)] {
            if let Some(id) = id {
                ensure!(
                    model.id_to_token(id).is_some(),
                    "{name}_token_id: expected an id of the vocabulary, found {id}"
                );
            }
        }
        // A file can ask for both; they would change what a text is trained as.
        model.with_truncation(None).map_err(|e| anyhow!("{e}"))?.with_padding(None);
        let split_special = config.get("split_special_tokens").and_then(Value::as_bool);
        model.set_encode_special_tokens(split_special.unwrap_or(false));
        let can_cut = cut::is_safe_for(&model);
        let model = Model::HuggingFace(Box::new(model));
        Ok(Tokenizer { model, bos_id, eos_id, pad_id, config, can_cut })
    }

    /// The ids of `text`, without BOS and EOS.
    ///
    /// Special tokens that are written out in the text become their ids, as in `transformers`, unless
    /// `split_special_tokens` is set. Characters that the vocabulary cannot spell are left out, as there.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        Ok(self.encode_batch(&[text])?.remove(0))
    }

    /// The ids of each of `texts`, as [`Tokenizer::encode`] gives them, on all cores.
    pub fn encode_batch<T: AsRef<str> + Sync>(&self, texts: &[T]) -> Result<Vec<Vec<u32>>> {
        let model = match &self.model {
            Model::Bytes => {
                let encode = |text: &T| text.as_ref().bytes().map(u32::from).collect();
                return Ok(texts.par_iter().map(encode).collect());
            }
            Model::HuggingFace(model) => model,
        };
        // Pieces of all texts are one list of work, so that one long text does not leave the other cores idle.
        let mut pieces: Vec<(usize, &str)> = Vec::new();
        for (i, text) in texts.iter().enumerate() {
            match self.can_cut {
                true => pieces.extend(cut::cut(text.as_ref()).map(|piece| (i, piece))),
                false => pieces.push((i, text.as_ref())),
            }
        }
        let encoded: Vec<Vec<u32>> = pieces
            .par_iter()
            .with_max_len(1)
            .map(|(_, piece)| Ok(model.encode_fast(*piece, false)?.get_ids().to_vec()))
            .collect::<tokenizers::Result<_>>()
            .map_err(|e| anyhow!("tokenizer: {e}"))?;
        let mut ids = vec![Vec::new(); texts.len()];
        for ((i, _), piece) in pieces.iter().zip(encoded) {
            if ids[*i].is_empty() { ids[*i] = piece } else { ids[*i].extend(piece) }
        }
        Ok(ids)
    }

    /// The text of `ids`, special tokens included. Bytes that are not UTF-8 become U+FFFD; ids that are not in the
    /// vocabulary are left out, as models may have a few more than their tokenizer.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        match &self.model {
            Model::HuggingFace(model) => {
                model.decode(ids, false).map_err(|e| anyhow!("tokenizer: {e}"))
            }
            Model::Bytes => {
                let mut bytes = Vec::with_capacity(ids.len());
                for &id in ids {
                    match u8::try_from(id) {
                        Ok(byte) => bytes.push(byte),
                        Err(_) => {
                            let special = [BYTES_BOS, BYTES_EOS].into_iter().find(|s| s.0 == id);
                            bytes.extend(special.map_or("", |s| s.1).bytes());
                        }
                    }
                }
                Ok(String::from_utf8_lossy(&bytes).into_owned())
            }
        }
    }

    /// The id that begins a document, where there is one.
    pub fn bos_id(&self) -> Option<u32> {
        self.bos_id
    }

    /// The id that ends a document, where there is one.
    pub fn eos_id(&self) -> Option<u32> {
        self.eos_id
    }

    /// The id of padding, where a file names one. Nothing in this crate pads.
    pub fn pad_id(&self) -> Option<u32> {
        self.pad_id
    }

    /// The id of the token that is spelled `token`.
    pub fn token_to_id(&self, token: &str) -> Option<u32> {
        match &self.model {
            Model::Bytes => [BYTES_BOS, BYTES_EOS].into_iter().find(|s| s.1 == token).map(|s| s.0),
            Model::HuggingFace(model) => model.token_to_id(token),
        }
    }

    /// One more than the greatest id: the least `vocab_size` of a model for these tokens.
    pub fn vocab_size(&self) -> usize {
        match &self.model {
            Model::Bytes => 258,
            Model::HuggingFace(model) => {
                model.get_vocab(true).values().max().map_or(0, |&id| id as usize + 1)
            }
        }
    }

    /// Checks a sequence length against the tokenizer's own limit, which `lifted` may lift.
    ///
    /// # Errors
    ///
    /// When the length is beyond the limit: with the key that lifts it, after the place that asks for the length.
    pub fn check_length(&self, length: usize, lifted: Option<usize>) -> Result<(), String> {
        match self.max_length() {
            Some(limit) if length > limit && lifted.is_none_or(|lifted| length > lifted) => {
                Err(format!(
                    "expected at most the tokenizer's model_max_length ({limit}), found `{length}`\n  help: set \
                     model.max_position_embeddings: {length} to lift the limit (in a project: --max-position-embeddings {length})"
                ))
            }
            _ => Ok(()),
        }
    }

    /// Checks that a model of `vocab_size` embeddings has one for every id. `spec` is what [`Tokenizer::from_spec`] read.
    ///
    /// # Errors
    ///
    /// When it has fewer: said after the place that chose the tokenizer.
    pub fn check_vocabulary(&self, spec: &str, vocab_size: usize) -> Result<(), String> {
        match self.vocab_size() {
            ids if ids > vocab_size => Err(format!(
                "expected at most the model's vocab_size of {vocab_size} ids, found {ids} in `{spec}`"
            )),
            _ => Ok(()),
        }
    }

    /// Whether special tokens that are written out in a text are text like any other.
    pub fn splits_special_tokens(&self) -> bool {
        let split_special = self.config.get("split_special_tokens").and_then(Value::as_bool);
        split_special.unwrap_or(false)
    }

    /// `model_max_length` of `tokenizer_config.json`, in tokens: what [`Tokenizer::check_length`] holds lengths to.
    pub fn max_length(&self) -> Option<usize> {
        let length = self.config.get("model_max_length")?.as_f64()?;
        (1.0..MAX_BELIEVABLE_LENGTH).contains(&length).then_some(length as usize)
    }

    /// The Jinja template that turns a conversation into text, where there is one.
    pub fn chat_template(&self) -> Option<&str> {
        self.config.get("chat_template")?.as_str()
    }

    /// blake3 over the vocabulary, the rules and the special ids, in hex. A saved tokenizer keeps it.
    pub fn digest(&self) -> Result<String> {
        let mut hasher = blake3::Hasher::new();
        hasher.update(self.to_json(false)?.as_bytes());
        let special = [self.bos_id, self.eos_id, self.pad_id];
        hasher.update(serde_json::to_string(&special)?.as_bytes());
        Ok(hasher.finalize().to_hex().to_string())
    }

    /// Writes `tokenizer.json` and `tokenizer_config.json` to `folder` (made if need be), for the `AutoTokenizer` of
    /// `transformers` and for [`Tokenizer::open`].
    pub fn save(&self, folder: &Path) -> Result<()> {
        let mut config = self.config.clone();
        let mut set = |key: &str, value: Option<Value>| {
            if let Some(value) = value
                && !config.contains_key(key)
            {
                config.insert(key.to_string(), value);
            }
        };
        set("tokenizer_class", Some("PreTrainedTokenizerFast".into()));
        set("clean_up_tokenization_spaces", Some(false.into()));
        if let Model::HuggingFace(model) = &self.model {
            let token = |id: Option<u32>| id.and_then(|id| model.id_to_token(id)).map(Value::from);
            set("bos_token", token(self.bos_id));
            set("eos_token", token(self.eos_id));
            set("pad_token", token(self.pad_id));
        }
        let write = |name: &str, text: String| {
            let path = folder.join(name);
            fs::write(&path, text).with_context(|| format!("{}: cannot be written", path.display()))
        };
        fs::create_dir_all(folder)
            .with_context(|| format!("{}: cannot be made", folder.display()))?;
        write("tokenizer.json", self.to_json(true)?)?;
        write("tokenizer_config.json", serde_json::to_string_pretty(&config)? + "\n")
    }

    fn to_json(&self, pretty: bool) -> Result<String> {
        let text = match &self.model {
            Model::HuggingFace(model) => model.to_string(pretty),
            Model::Bytes => load(&serde_json::to_vec(&bytes_json())?)?.to_string(pretty),
        };
        text.map_err(|e| anyhow!("tokenizer: {e}"))
    }
}

/// The byte tokenizer as a `tokenizer.json`: a byte-level BPE whose vocabulary is the bytes, without merges.
fn bytes_json() -> Value {
    let vocab: Map<String, Value> =
        (0..=255u8).map(|byte| (byte_level_char(byte).to_string(), byte.into())).collect();
    let special: Vec<Value> =
        [BYTES_BOS, BYTES_EOS].map(|(id, content)| added_token(id, content, true)).into();
    let byte_level = json!({
        "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false,
    });
    json!({
        "version": "1.0",
        "added_tokens": special,
        "pre_tokenizer": byte_level,
        "decoder": byte_level,
        "model": {"type": "BPE", "vocab": vocab, "merges": []},
    })
}

/// An entry of `added_tokens` in a `tokenizer.json`.
fn added_token(id: u32, content: &str, special: bool) -> Value {
    json!({
        "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
        "normalized": false, "special": special,
    })
}

/// The printable character that byte-level vocabularies write for `byte`: `bytes_to_unicode` of GPT-2's `encoder.py`.
///
/// Printable Latin-1 stands for itself, the other 68 bytes are counted up from U+0100.
fn byte_level_char(byte: u8) -> char {
    let is_printable = |b: u8| matches!(b, 33..=126 | 161..=172 | 174..=255);
    if is_printable(byte) {
        return byte.into();
    }
    let rank = (0..byte).filter(|&b| !is_printable(b)).count() as u32;
    char::from_u32(0x100 + rank).expect("the 68 characters after U+0100 exist")
}

fn load(json: &[u8]) -> Result<HuggingFace> {
    HuggingFace::from_bytes(json).map_err(|e| anyhow!("expected a tokenizer.json: {e}"))
}

/// The object in a JSON file; empty where there is no file.
fn read_json(path: &Path) -> Result<Map<String, Value>> {
    if !path.is_file() {
        return Ok(Map::new());
    }
    let context = || format!("{}: expected a JSON object", path.display());
    serde_json::from_slice(&fs::read(path).with_context(context)?).with_context(context)
}

fn into_map(value: Value) -> Map<String, Value> {
    if let Value::Object(map) = value { map } else { Map::new() }
}

fn file_in(folder: &Path) -> Result<PathBuf> {
    let json = folder.join("tokenizer.json");
    if json.is_file() {
        return Ok(json);
    }
    let context = || format!("tokenizer {}: cannot be listed", folder.display());
    let mut ggufs = Vec::new();
    for entry in fs::read_dir(folder).with_context(context)? {
        let path = entry.with_context(context)?.path();
        if path.extension().is_some_and(|e| e == "gguf") {
            ggufs.push(path);
        }
    }
    match &ggufs[..] {
        [only] => Ok(only.clone()),
        [] => bail!(
            "tokenizer {}: expected a tokenizer.json or a .gguf file in the folder, found neither\n  help: `AutoTokenizer.\
             from_pretrained(...).save_pretrained(...)` of transformers writes a tokenizer.json",
            folder.display()
        ),
        several => bail!(
            "tokenizer {}: expected a tokenizer.json or one .gguf file in the folder, found {} .gguf files\n  help: name \
             the file",
            folder.display(),
            several.len()
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A small byte-level BPE with GPT-2's splitting, `<s>` and `</s>`.
    pub(crate) fn small_bpe() -> Value {
        let mut model = bytes_json();
        let vocab = model["model"]["vocab"].as_object_mut().unwrap();
        let merges = [("t", "h"), ("th", "e"), ("Ġ", "the"), ("Ġ", "a"), ("i", "n")];
        for (i, (a, b)) in merges.iter().enumerate() {
            vocab.insert(format!("{a}{b}"), (256 + i).into());
        }
        model["model"]["merges"] = merges.iter().map(|(a, b)| json!([a, b])).collect();
        model["added_tokens"] =
            json!([added_token(261, "<s>", true), added_token(262, "</s>", true)]);
        model["pre_tokenizer"]["use_regex"] = true.into();
        model["truncation"] = json!({
            "direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0,
        });
        model
    }

    fn write(folder: &Path, name: &str, content: &Value) {
        fs::write(folder.join(name), content.to_string()).unwrap();
    }

    #[test]
    fn bytes_are_ids() {
        let tokenizer = Tokenizer::from_spec("bytes").unwrap();
        assert_eq!(tokenizer.encode("aé").unwrap(), [97, 0xc3, 0xa9]);
        assert_eq!(tokenizer.decode(&[256, 97, 0xc3, 0xa9, 257, 400]).unwrap(), "<|bos|>aé<|eos|>");
        assert_eq!(tokenizer.decode(&[97, 0xc3]).unwrap(), "a\u{fffd}");
        assert_eq!((tokenizer.bos_id(), tokenizer.eos_id()), (Some(256), Some(257)));
        assert_eq!((tokenizer.pad_id(), tokenizer.vocab_size()), (None, 258));
        let chars: std::collections::HashSet<_> = (0..=255).map(byte_level_char).collect();
        assert_eq!((chars.len(), byte_level_char(b' '), byte_level_char(173)), (256, 'Ġ', 'Ń'));
    }

    #[test]
    fn saved_bytes_are_the_same_tokenizer() {
        let folder = tempfile::tempdir().unwrap();
        let bytes = Tokenizer::bytes();
        bytes.save(folder.path()).unwrap();
        let saved = Tokenizer::open(folder.path()).unwrap();
        assert!(matches!(saved.model, Model::HuggingFace(_)));
        assert_eq!((saved.bos_id(), saved.eos_id()), (Some(256), Some(257)));
        assert_eq!((saved.pad_id(), saved.vocab_size()), (None, 258));
        assert_eq!(saved.digest().unwrap(), bytes.digest().unwrap());
        let mut runner = proptest::test_runner::TestRunner::default();
        let text =
            prop_oneof![any::<String>(), "[ a-c\r\n\tßλ漢🦀]{0,40}", "(<\\|[be]os\\|>| x){0,4}"];
        runner
            .run(&text, |text| {
                let ids = bytes.encode(&text).unwrap();
                prop_assert_eq!(&saved.encode(&text).unwrap(), &ids);
                prop_assert_eq!(saved.decode(&ids).unwrap(), &text[..]);
                prop_assert_eq!(bytes.decode(&ids).unwrap(), &text[..]);
                Ok(())
            })
            .unwrap();
    }

    #[test]
    fn a_folder_gives_ids_special_tokens_and_length() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        write(folder, "tokenizer.json", &small_bpe());
        let open = || Tokenizer::open(folder);
        let tokenizer = open().unwrap();
        // Truncation to 3 tokens, which the file asks for, is not done.
        assert_eq!(tokenizer.encode("the the inn").unwrap(), [257, 258, 32, 260, 110]);
        assert_eq!(tokenizer.encode("a</s>").unwrap(), [97, 262]);
        assert_eq!((tokenizer.bos_id(), tokenizer.max_length()), (None, None));

        let config = json!({"bos_token_id": 261, "eos_token_id": [262, 0], "pad_token_id": null});
        write(folder, "config.json", &config);
        assert_eq!(open().unwrap().eos_id(), Some(262));
        let tokens =
            json!({"eos_token": {"content": "</s>"}, "bos_token": null, "model_max_length": 1e30});
        write(folder, "tokenizer_config.json", &tokens);
        let tokenizer = open().unwrap();
        assert_eq!((tokenizer.bos_id(), tokenizer.eos_id()), (None, Some(262)));
        assert_eq!(tokenizer.max_length(), None);
        write(folder, "tokenizer_config.json", &json!({"model_max_length": 8192}));
        let limited = open().unwrap();
        assert!(
            limited.check_length(8192, None).is_ok()
                && limited.check_length(9000, Some(9000)).is_ok()
        );
        let error = limited.check_length(9000, Some(8999)).unwrap_err();
        let expected = "expected at most the tokenizer's model_max_length (8192), found `9000`";
        assert!(
            error.starts_with(expected) && error.contains("--max-position-embeddings 9000"),
            "{error}"
        );
        write(folder, "special_tokens_map.json", &json!({"pad_token": "<s>"}));
        let tokenizer = Tokenizer::open(&folder.join("tokenizer.json")).unwrap();
        assert_eq!((tokenizer.max_length(), tokenizer.pad_id()), (Some(8192), Some(261)));
        assert_eq!(tokenizer.bos_id(), Some(261));

        let copy = folder.join("copy");
        tokenizer.save(&copy).unwrap();
        assert_eq!(Tokenizer::open(&copy).unwrap().digest().unwrap(), tokenizer.digest().unwrap());

        write(folder, "tokenizer_config.json", &json!({"bos_token": "<bos>"}));
        let error = format!("{:#}", open().err().unwrap());
        let expected =
            "tokenizer_config.json: bos_token: expected a token of the vocabulary, found \"<bos>\"";
        assert!(error.ends_with(expected), "{error}");
    }

    #[test]
    fn what_is_no_tokenizer_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let check = |path: &Path, expected: &str| {
            let error = format!("{:#}", Tokenizer::open(path).err().unwrap());
            assert!(error.contains(expected), "{error}");
        };
        check(folder.path(), "expected a tokenizer.json or a .gguf file in the folder");
        check(&folder.path().join("x"), "help: `bytes` names the byte tokenizer");
        write(folder.path(), "tokenizer.json", &json!({"version": "1.0"}));
        check(folder.path(), "tokenizer.json: expected a tokenizer.json");
    }
}
