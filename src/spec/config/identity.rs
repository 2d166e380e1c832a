//! What makes two configurations one run: the hashes of all that can change a result.

use super::{RunConfig, flatten_into};
use serde::{Deserialize, Serialize};

/// What a run is, hashed: two runs with the same `run_hash` are the same run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunIdentity {
    /// blake3 of the canonical configuration with the digests; 64 hexadecimal digits.
    pub run_hash: String,
    /// The same without the seed: the seeds of one point share it.
    pub group_hash: String,
}

/// Digests of what the configuration only names. A path is not part of a run's identity; what it holds is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Digests {
    pub model: String,
    pub tokenizer: String,
    pub data: String,
}

/// Keys (as JSON pointers) that came after runs had been hashed, each with the value (as JSON) that stands for what runs did
/// before. Left at it, a key is no part of the hash, so that no finished run is done again. Those that stand at `null` need no
/// line here.
const CAME_LATER: [(&str, &str); 8] = [
    ("/train/save_checkpoints", "true"),
    ("/train/optimizer/state_dtype", r#""float32""#),
    ("/data/sample_by", r#""document""#),
    ("/data/stride", "0"),
    ("/data/overflow", "true"),
    ("/data/continuation", r#""seamless""#),
    ("/data/shuffle_blocks", "false"),
    ("/data/select", "{}"),
];

impl RunConfig {
    /// The hashes of this configuration with `digests` in place of the paths.
    ///
    /// Left out: `run.device`, `run.threads` (where it ran) and the paths themselves.
    pub fn identity(&self, digests: &Digests) -> RunIdentity {
        let mut json = self.canonical(digests);
        let run_hash = hash_canonical(&json);
        json["train"]["seed"] = serde_json::Value::Null;
        RunIdentity { run_hash, group_hash: hash_canonical(&json) }
    }

    /// What the identity is made of, flattened: every key path that is a part of it with its value, and under `model`,
    /// `tokenizer` and `data` the digests of what they name. Two runs are one exactly when these are the same.
    pub fn identity_parts(&self, digests: &Digests) -> Vec<(String, serde_json::Value)> {
        let mut parts = Vec::new();
        flatten_into(String::new(), &self.canonical(digests), &mut parts);
        for (key, _) in &mut parts {
            match key.as_str() {
                "model.path" => *key = "model".into(),
                "tokenizer.path" => *key = "tokenizer".into(),
                "data.corpus" => *key = "data".into(),
                _ => {}
            }
        }
        parts
    }

    fn canonical(&self, digests: &Digests) -> serde_json::Value {
        let mut json = self.to_json();
        for (key, before) in CAME_LATER {
            let before: serde_json::Value = serde_json::from_str(before).expect("a line of JSON");
            let value = json.pointer_mut(key).expect("the complete form has every key");
            if *value == before {
                *value = serde_json::Value::Null;
            }
        }
        json["run"] = serde_json::json!({ "memory_cap": self.run.memory_cap, "probe_layers": self.run.probe_layers });
        json["model"]["path"] = digests.model.clone().into();
        json["tokenizer"]["path"] = digests.tokenizer.clone().into();
        json["data"]["corpus"] = digests.data.clone().into();
        json
    }
}

/// blake3 of the JSON text with sorted keys. Absent and `null` options are the same thing.
fn hash_canonical(value: &serde_json::Value) -> String {
    fn write(value: &serde_json::Value, out: &mut String) {
        match value {
            serde_json::Value::Object(map) => {
                let mut entries: Vec<_> = map.iter().filter(|(_, v)| !v.is_null()).collect();
                entries.sort_by_key(|(key, _)| *key);
                out.push('{');
                for (key, value) in entries {
                    out.push_str(&format!("{key:?}:"));
                    write(value, out);
                    out.push(',');
                }
                out.push('}');
            }
            serde_json::Value::Array(items) => {
                out.push('[');
                for item in items {
                    write(item, out);
                    out.push(',');
                }
                out.push(']');
            }
            // 1 and 1.0 are the same number.
            serde_json::Value::Number(n) => match n.as_f64() {
                Some(x) if x.fract() == 0.0 && x.abs() < 2f64.powi(53) => {
                    out.push_str(&format!("{}", x as i64))
                }
                _ => out.push_str(&n.to_string()),
            },
            other => out.push_str(&other.to_string()),
        }
    }
    let mut text = String::new();
    write(value, &mut text);
    blake3::hash(text.as_bytes()).to_hex().to_string()
}

#[cfg(test)]
mod tests {
    use super::super::tests::{SMALL, read};
    use super::*;
    use crate::config::Device;
    use crate::units::Bytes;
    use proptest::prelude::*;

    #[test]
    fn identity_knows_what_matters() {
        let config = read(SMALL).unwrap();
        let digests = Digests { model: "m".into(), tokenizer: "t".into(), data: "d".into() };
        let identity = config.identity(&digests);
        let with = |change: &dyn Fn(&mut RunConfig)| {
            let mut other = config.clone();
            change(&mut other);
            other.identity(&digests)
        };
        assert_eq!(with(&|c| c.run.device = Device::Cpu), identity);
        assert_eq!(with(&|c| c.model.path = Some("elsewhere".into())), identity);
        let seed = with(&|c| c.train.seed = 7);
        assert_ne!(seed.run_hash, identity.run_hash);
        assert_eq!(seed.group_hash, identity.group_hash);
        assert_ne!(with(&|c| c.train.learning_rate = 2e-5).group_hash, identity.group_hash);
        assert_ne!(with(&|c| c.run.memory_cap = Some(Bytes::gib(24))).run_hash, identity.run_hash);
        let other_data = Digests { data: "e".into(), ..digests.clone() };
        assert_ne!(config.identity(&other_data).run_hash, identity.run_hash);
    }

    /// What is not written is null, and null is left out of the hash: keys that came later leave earlier runs what they were.
    #[test]
    fn keys_of_the_engines_are_hashed_only_where_written() {
        let digests = Digests { model: "m".into(), tokenizer: "t".into(), data: "d".into() };
        let hash = |text: &str| read(text).unwrap().identity(&digests).run_hash;
        let plain = read(SMALL).unwrap();
        let keys = [
            "engine",
            "attention_head_groups",
            "mlp_tile_tokens",
            "activation_offloading",
            "attention_offloading",
            "checkpoint_every_layers",
            "recompute",
            "recompute_num_layers",
            "optimizer_in_backward",
            "weight_streaming",
            "stochastic_rounding",
            "grad_clipping",
        ];
        for key in keys {
            assert_eq!(plain.to_json()["train"].get(key), Some(&serde_json::Value::Null), "{key}");
        }
        assert_eq!(plain.to_json()["run"].get("probe_layers"), Some(&serde_json::Value::Null));
        let layered = format!("{SMALL}  engine: layered\n  max_grad_norm: null\n");
        let probe = format!("{layered}run: {{probe_layers: 2}}\n");
        assert_ne!(hash(&layered), hash(SMALL));
        assert_ne!(hash(&probe), hash(&layered));
    }

    /// State in float32 is what runs had before there was a choice.
    #[test]
    fn state_dtype_is_hashed_where_it_is_not_float32() {
        let digests = Digests { model: "m".into(), tokenizer: "t".into(), data: "d".into() };
        let hash = |optimizer: &str| {
            let config =
                read(&format!("{SMALL}  optimizer: {{type: adamw{optimizer}}}\n")).unwrap();
            config.identity(&digests)
        };
        assert_eq!(hash(", state_dtype: float32"), hash(""));
        assert_ne!(hash(", state_dtype: int8"), hash(""));
        let plain = read(SMALL).unwrap().to_json();
        assert_eq!(plain["train"]["optimizer"].get("state_dtype"), Some(&serde_json::Value::Null));
    }

    proptest! {
        #[test]
        fn hashing_does_not_depend_on_the_order_of_keys(keys in proptest::collection::btree_map("[a-e]", 0i64..5, 0..5)) {
            let forward: serde_json::Map<_, _> = keys.iter().map(|(k, v)| (k.clone(), (*v).into())).collect();
            let backward: serde_json::Map<_, _> = keys.iter().rev().map(|(k, v)| (k.clone(), (*v).into())).collect();
            prop_assert_eq!(hash_canonical(&forward.into()), hash_canonical(&backward.into()));
        }
    }

    /// A promise to the stores of earlier versions: keys that came later, left as they are, change no hash.
    #[test]
    fn runs_keep_the_hashes_that_they_were_given() {
        let digests = Digests { model: "m".into(), tokenizer: "t".into(), data: "d".into() };
        let hash = |text: &str| read(text).unwrap().identity(&digests).run_hash;
        let wsd = format!("{SMALL}  schedule: {{type: wsd, warmup_tokens: 1K}}\n");
        assert_eq!(hash(SMALL), "f87c0db998fc473fc8400172083a45fcdbff4bbc613f7008120475a9ff765586");
        assert_eq!(hash(&wsd), "51d901817401ef59a38d5e3c618791cf6915a4bfd9cf75b10eef37bba687b1b7");
        let off = format!("{SMALL}  save_checkpoints: false\n");
        assert_ne!(hash(&off), hash(SMALL));
        for key in [
            "sample_by: line",
            "select: {train: 3}",
            "truncate_at: END",
            "max_document_tokens: 9",
            "stride: 1",
            "overflow: false",
            "continuation: restarted",
            "pack_batch_documents: 2",
            "shuffle_blocks: true",
        ] {
            let with = SMALL.replace("corpus: texts", &format!("corpus: texts, {key}"));
            assert_ne!(hash(&with), hash(SMALL), "{key}");
        }
        let in_full =
            "corpus: texts, sample_by: document, select: {train: ':'}, stride: 0, overflow: true";
        assert_eq!(hash(&SMALL.replace("corpus: texts", in_full)), hash(SMALL));
    }
}
