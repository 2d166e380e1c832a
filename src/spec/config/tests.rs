use super::*;

pub(super) const SMALL: &str = "\
model: {path: models/tiny}
data: {corpus: texts}
train:
  sequence_length: 64
  total_tokens: 4K
  learning_rate: 1e-5
";

pub(super) fn read(text: &str) -> Result<RunConfig> {
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
    let data = "corpus: texts, select: {train: [0.1, 80%]}, truncate_at: ' END', shuffle_blocks: true, continuation: restarted";
    let config = read(&SMALL.replace("corpus: texts", data)).unwrap();
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
    for (option, message) in [
        ("factor: .inf", "factor: expected 1 or more, found `inf`"),
        (
            "factor: 4, original_max_position_embeddings: 0",
            "original_max_position_embeddings: expected 1 or more, found `0`",
        ),
        ("factor: 4, attention_factor: -1", "attention_factor: expected more than 0, found `-1`"),
        (
            "factor: 4, beta_fast: 1, beta_slow: 32",
            "expected beta_fast (32 if not given) above beta_slow (1 if not given), found `1` and `32`",
        ),
    ] {
        let rope = format!("a, rope_parameters: {{rope_type: yarn, {option}}}");
        let found = error(&SMALL.replace("models/tiny", &rope));
        assert_eq!(found, format!("run.yaml:1: model.rope_parameters: {message}"));
    }
    let shape = "vocab_size: 260, hidden_size: 32, intermediate_size: 48, num_hidden_layers: 2, num_attention_heads: 4";
    for (option, message) in [
        ("rms_norm_eps: -1", "rms_norm_eps: expected more than 0, found `-1`"),
        ("initializer_range: -1", "initializer_range: expected 0 or more, found `-1`"),
        (
            "max_position_embeddings: 4611686018427387904",
            "max_position_embeddings: expected at most 1099511627776, found `4611686018427387904`",
        ),
        (
            "head_dim: 2097152",
            "expected num_attention_heads (4) times head_dim (2097152) of at most 4194304",
        ),
    ] {
        let model = SMALL.replace("path: models/tiny", &format!("config: {{{shape}, {option}}}"));
        let found = error(&model.replace("data:", "tokenizer: {path: bytes}\ndata:"));
        assert!(found.ends_with(&format!("model.config: {message}")), "{found}");
    }
    let ignored = error(&format!("{SMALL}  optimizer: {{type: sgd, betas: [0.9, 0.99]}}\n"));
    assert_eq!(ignored, "run.yaml:7: train.optimizer: `betas` is not an option of `sgd`");
    let ignored = error(&format!("{SMALL}  optimizer: {{type: adafactor, state_dtype: int8}}\n"));
    assert_eq!(
        ignored,
        "run.yaml:7: train.optimizer: `state_dtype` is not an option of `adafactor`"
    );
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
    assert!(
        kind.starts_with(
            "run.yaml:7: train.optimizer.type: expected a known value, found `adamv`\n  help: did you mean `adamw`?"
        ),
        "{kind}"
    );
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
fn settings_of_the_engines_fit_together() {
    let refused = |train: &str, key: &str, message: &str| {
        let error = error(&format!("{SMALL}{train}"));
        assert!(error.contains(&format!("{key}: {message}")), "{error}");
    };
    let layered = "expected `train.engine: layered` for it, found `plain`";
    let on_plain = |key: &str, value: &str| {
        let line = format!("  engine: plain\n  {key}: {value}\n");
        refused(&line, &format!("train.{key}"), layered);
    };
    on_plain("attention_head_groups", "2");
    on_plain("weight_streaming", "true");
    on_plain("grad_clipping", "per_sublayer");
    refused("run: {probe_layers: 2}\n", "run.probe_layers", layered);
    // Where no engine is written, what only one has says which.
    let engine = |line: &str| read(&format!("{SMALL}{line}")).unwrap().train.engine();
    assert_eq!(engine("  attention_head_groups: 2\n"), Engine::Layered);
    assert_eq!(engine("  recompute: mlp\n  recompute_num_layers: 1\n"), Engine::Layered);
    assert_eq!(engine("  weight_streaming: false\n"), Engine::Plain);
    refused(
        "  gradient_accumulation_steps: 4611686018427387904\n",
        "train",
        "expected at most 1073741824 tokens in a step",
    );
    refused(
        "  schedule: {type: cosine, warmup_tokens: 5M}\n",
        "train.schedule",
        "expected warmup_tokens (5M) to fit into total_tokens",
    );
    let betas = |list: &str| format!("  optimizer: {{type: adamw, betas: {list}}}\n");
    refused(
        &betas("[0.9, 0.99, 0.999]"),
        "train.optimizer.betas",
        "expected a list of 2, found one of 3",
    );
    refused(&betas("[0.9]"), "train.optimizer.betas", "expected a list of 2, found one of 1");
    refused("run: {threads: 0}\n", "run.threads", "expected 1 to 1024, found `0`");
    refused("run: {threads: 1025}\n", "run.threads", "expected 1 to 1024, found `1025`");
    refused("  mlp_tile_tokens: 0\n", "train.mlp_tile_tokens", "expected 1 or more, found `0`");
    refused(
        "  stochastic_rounding: true\n",
        "train.stochastic_rounding",
        "expected `train.weights_dtype: bfloat16`",
    );
    let on_layered = |rest: &str| format!("  engine: layered\n{rest}");
    refused(
        &on_layered("  optimizer_in_backward: true\n"),
        "train.optimizer_in_backward",
        "expected no clipping that needs all gradients at once",
    );
    refused(
        &on_layered(
            "  grad_clipping: per_sublayer\n  optimizer_in_backward: true\n  gradient_accumulation_steps: 2\n",
        ),
        "train.optimizer_in_backward",
        "expected `train.gradient_accumulation_steps: 1`",
    );
    refused(
        &on_layered("run: {probe_layers: 2}\n"),
        "run.probe_layers",
        "expected `train.optimizer_in_backward: true`",
    );
    refused(
        &on_layered("  weight_streaming: true\n"),
        "train.weight_streaming",
        "expected `train.optimizer_in_backward: true`",
    );
    refused(
        &on_layered("  activation_checkpointing: true\n"),
        "train.activation_checkpointing",
        "expected `train.engine: plain`",
    );
    let resolved = |rest: &str| read(&format!("{SMALL}{}", on_layered(rest))).unwrap().train;
    assert!(!resolved("").optimizer_in_backward());
    assert!(resolved("  max_grad_norm: null\n").optimizer_in_backward());
    assert!(resolved("  grad_clipping: per_sublayer\n").optimizer_in_backward());
    assert!(resolved("  grad_clipping: global_two_pass\n").optimizer_in_backward());
    assert!(resolved("  weights_dtype: bfloat16\n").stochastic_rounding());
    assert!(!resolved("").stochastic_rounding());
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

#[test]
fn a_run_is_as_long_as_its_tokens_or_its_steps() {
    let read = |budget: &str| read(&SMALL.replace("total_tokens: 4K", budget)).map(|c| c.train);
    let train = read("max_steps: 10").unwrap();
    assert_eq!((train.total_tokens, train.max_steps), (Tokens(640), Some(10)));
    let neither = read("micro_batch_size: 2").unwrap_err().to_string();
    let expected = "expected the key `total_tokens` or `max_steps`, found neither";
    assert_eq!(neither, format!("run.yaml:4: train: {expected}"));
    let none = read("max_steps: 0").unwrap_err().to_string();
    assert_eq!(none, "run.yaml:5: train.max_steps: expected 1 or more, found `0`");
}

#[test]
fn the_split_that_is_evaluated_has_to_be_there() {
    let with = |splits: &str, eval: &str| {
        let text = SMALL.replace("corpus: texts", &format!("corpus: texts{splits}"));
        format!("{text}eval: {{{eval}}}\n")
    };
    let held_out = ", splits: {validation: [a.txt], test: [b.txt]}";
    assert_eq!(
        error(&with(held_out, "split: valid")),
        "run.yaml:7: eval.split: expected a split of data.splits, found `valid`\n  help: known here: test, train, validation"
    );
    assert_eq!(
        error(&with(held_out, "split: tets")),
        "run.yaml:7: eval.split: expected a split of data.splits, found `tets`\n  help: did you mean `test`? known here: test, \
         train, validation"
    );
    let unsaid = error(&with("", "context_lengths: [8]"));
    assert!(
        unsaid.contains("eval.split: expected a split of data.splits, found `validation`"),
        "{unsaid}"
    );
    for (splits, eval) in [
        (held_out, "split: test"),
        (held_out, "context_lengths: [8]"),
        ("", "split: train"),
        ("", "last_stride: 0"),
    ] {
        read(&with(splits, eval)).unwrap();
    }
}

#[test]
fn schedules_may_be_written_in_steps() {
    // 4,000 tokens are 63 steps of 64.
    let complete = |schedule: &str| {
        read(&format!("{SMALL}  schedule: {{{schedule}}}\n")).unwrap().train.schedule
    };
    let steps = |schedule: Schedule| {
        (schedule.warmup_steps, schedule.decay_steps, schedule.decay_start_step)
    };
    assert_eq!(steps(complete("type: wsd")), (None, None, None));
    assert_eq!(steps(complete("type: wsd, warmup_steps: 5")), (Some(5), Some(6), Some(57)));
    assert_eq!(steps(complete("type: wsd, decay_steps: 100")), (Some(0), Some(100), Some(0)));
    let early = "type: wsd, warmup_steps: 5, decay_steps: 10, decay_start_step: 20";
    assert_eq!(steps(complete(early)), (Some(5), Some(10), Some(20)));
    assert_eq!(steps(complete("type: cosine, warmup_steps: 3")), (Some(3), Some(60), None));
    assert_eq!(steps(complete("type: constant, warmup_steps: 3")), (Some(3), None, None));
    for (schedule, message) in [
        (
            "type: wsd, warmup_steps: 5, decay_tokens: 1K",
            "expected lengths in tokens or in steps, found both (`decay_tokens` is in tokens)",
        ),
        (
            "type: wsd, warmup_steps: 5, decay_start_step: 4",
            "expected decay_start_step of at least warmup_steps (5), found `4`",
        ),
        ("type: wsd, decay_steps: 0", "decay_steps: expected 1 or more, found `0`"),
        ("type: constant, decay_steps: 5", "`decay_steps` belongs to `cosine` and `wsd`"),
        ("type: cosine, decay_start_step: 5", "`decay_start_step` belongs to `wsd`"),
    ] {
        let refused = error(&format!("{SMALL}  schedule: {{{schedule}}}\n"));
        assert_eq!(refused, format!("run.yaml:7: train.schedule: {message}"));
    }
}

#[test]
fn data_that_can_not_be_is_refused() {
    let refused =
        |keys: &str| error(&SMALL.replace("corpus: texts", &format!("corpus: texts, {keys}")));
    for (keys, message) in [
        ("min_length: 0", "data.min_length: expected 1 or more, found `0`"),
        (
            "min_length: 65",
            "data.min_length: expected at most 64 (train.sequence_length), found `65`",
        ),
        (
            "stride: 64",
            "data.stride: expected at most 63 (a block has to hold something new), found `64`",
        ),
        (
            "stride: 63, continuation: restarted",
            "data.stride: expected at most 62 (a block has to hold something new), found `63`",
        ),
        ("stride: 8, overflow: false", "data.stride: belongs to `overflow: true`"),
        ("shuffle_seed: 1", "data.shuffle_seed: belongs to `shuffle_blocks: true`"),
        ("pack_batch_documents: 0", "data.pack_batch_documents: expected 1 or more, found `0`"),
        (
            "max_document_tokens: 1",
            "data.max_document_tokens: expected at least data.min_length (2), found `1`",
        ),
        (
            "truncate_at: '[a'",
            "data.truncate_at: expected a regular expression, found `[a` (error: unclosed character class)",
        ),
        (
            "truncate_at: 'x*'",
            "data.truncate_at: expected a regular expression that an empty text does not match, found `x*`",
        ),
        (
            "select: {trian: 0.5}",
            "data.select: expected names of splits, found `trian`\n  help: did you mean `train`?",
        ),
        (
            "select: {train: 80%:10%}",
            "data.select.train: expected a range with documents in it, found `80%:10%`",
        ),
        (
            "sample_by: word",
            "data.sample_by: expected a known value, found `word`\n  help: known here: `document`, `line`, `paragraph`",
        ),
    ] {
        assert_eq!(refused(keys), format!("run.yaml:2: {message}"));
    }
    let random = error(&SMALL.replace("corpus: texts", "corpus: random, stride: 8"));
    assert_eq!(random, "run.yaml:2: data.stride: has no meaning for the corpus `random`");
}

#[test]
fn a_shuffle_has_a_seed() {
    let seed = |keys: &str| read(&SMALL.replace("corpus: texts", keys)).unwrap().data.shuffle_seed;
    assert_eq!(seed("corpus: texts"), None);
    assert_eq!(seed("corpus: texts, shuffle_blocks: true"), Some(42));
    assert_eq!(seed("corpus: texts, shuffle_blocks: true, shuffle_seed: 7"), Some(7));
}
