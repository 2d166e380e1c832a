use super::*;
use proptest::prelude::*;

const SMALL: &str = "\
model: {path: models/tiny}
data: {corpus: texts}
train:
  sequence_length: 64
  total_tokens: 4K
  learning_rate: 1e-5
";

fn read(text: &str) -> Result<RunConfig> {
    RunConfig::from_written(&Written::parse("run.yaml", text)?)
}

fn error(text: &str) -> String {
    format!("{:#}", read(text).unwrap_err())
}

#[test]
fn the_complete_form_reads_back_the_same() {
    let config = read(SMALL).unwrap();
    assert_eq!(config.train.total_tokens, Tokens(4000));
    assert_eq!(config.train.optimizer.betas, Some([0.9, 0.999]));
    assert_eq!(read(&config.to_yaml()).unwrap(), config);
}

#[test]
fn mistakes_say_where_and_what() {
    let typo = error(&SMALL.replace("sequence_length", "sequence_lenght"));
    assert!(
        typo.starts_with(
            "run.yaml:4: train: expected a known key, found `sequence_lenght`\n  help: did you mean `sequence_length`?"
        ),
        "{typo}"
    );
    assert_eq!(
        error(&SMALL.replace("1e-5", "1e-5x")),
        "run.yaml:6: train.learning_rate: expected a number, found `1e-5x`"
    );
    assert_eq!(
        error(&SMALL.replace("4K", "4X")),
        "run.yaml:5: train.total_tokens: expected a number of tokens: a number with one of the units K, M, B or none, found `4X`"
    );
    assert_eq!(
        error(&SMALL.replace("models/tiny", "a, rope_parameters: {rope_type: yarn}")),
        "run.yaml:1: model.rope_parameters: rope_type `yarn` needs `factor`, found none"
    );
    let ignored = error(&format!("{SMALL}  optimizer: {{type: sgd, betas: [0.9, 0.99]}}\n"));
    assert_eq!(ignored, "run.yaml:7: train.optimizer: `betas` is not an option of `sgd`");
    for (written, message) in [
        ("type: sgd, momentum: 1", "momentum: expected a number from 0 to below 1, found `1`"),
        ("type: adamw, eps: -1e-8", "eps: expected 0 or more, found `-0.00000001`"),
        (
            "type: adafactor, beta2_decay: 0.8",
            "beta2_decay: expected a number below 0, found `0.8`",
        ),
        (
            "type: adafactor, clip_threshold: 0",
            "clip_threshold: expected a number above 0, found `0`",
        ),
        (
            "type: adafactor, relative_step_floor: -1",
            "relative_step_floor: expected 0 or more, found `-1`",
        ),
        ("type: adamw, weight_decay: .inf", "weight_decay: expected 0 or more, found `inf`"),
    ] {
        let refused = error(&format!("{SMALL}  optimizer: {{{written}}}\n"));
        assert_eq!(refused, format!("run.yaml:7: train.optimizer: {message}"));
    }
    let kind = error(&format!("{SMALL}  optimizer: {{type: adamv}}\n"));
    assert!(kind.contains("did you mean `adamw`?"), "{kind}");
    let missing = error(&SMALL.replace("  learning_rate: 1e-5\n", ""));
    assert_eq!(missing, "run.yaml:4: train: expected the key `learning_rate`, found none");
}

#[test]
fn both_spellings_of_rope_are_read() {
    let shape = r#""vocab_size": 10, "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2"#;
    let old = format!(
        r#"{{{shape}, "rope_theta": 5e5, "rope_scaling": {{"type": "linear", "factor": 2.0}}}}"#
    );
    let new = format!(
        r#"{{{shape}, "rope_parameters": {{"rope_type": "linear", "factor": 2.0, "rope_theta": 5e5}}}}"#
    );
    let old = ModelConfig::from_hf_json("old", &old).unwrap();
    assert_eq!(old.rope_parameters.rope_theta, Some(5e5));
    assert_eq!(old, ModelConfig::from_hf_json("new", &new).unwrap());
    let written = old.to_hf_json().to_string();
    let again = ModelConfig::from_hf_json("written", &written).unwrap();
    assert_eq!(again.rope_parameters, old.rope_parameters);
}

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

#[test]
fn parameters_of_a_7b_are_counted() {
    let llama = ModelConfig::from_hf_json(
        "llama-2-7b",
        r#"{"vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32}"#,
    )
    .unwrap();
    assert_eq!(llama.num_parameters(), 6_738_415_616);
    let mistral = ModelConfig::from_hf_json(
        "mistral-7b",
        r#"{"model_type": "mistral", "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8}"#,
    )
    .unwrap();
    assert_eq!(mistral.num_parameters(), 7_241_732_096);
    assert_eq!(mistral.sliding_window, Some(4096));
}

#[test]
fn assignments_are_yaml() {
    let (key, value) = parse_assignment("train.learning_rate=1e-5").unwrap();
    assert_eq!((key.as_str(), value.to_json()), ("train.learning_rate", serde_json::json!(1e-5)));
    assert!(parse_assignment("train.seed").unwrap_err().to_string().contains("key.path=value"));
}

proptest! {
    #[test]
    fn hashing_does_not_depend_on_the_order_of_keys(keys in proptest::collection::btree_map("[a-e]", 0i64..5, 0..5)) {
        let forward: serde_json::Map<_, _> = keys.iter().map(|(k, v)| (k.clone(), (*v).into())).collect();
        let backward: serde_json::Map<_, _> = keys.iter().rev().map(|(k, v)| (k.clone(), (*v).into())).collect();
        prop_assert_eq!(hash_canonical(&forward.into()), hash_canonical(&backward.into()));
    }
}
