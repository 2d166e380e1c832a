//! `fathom dataset` as a user of the tutorial meets it: in the dataset project, and on a corpus without one.

#[path = "support/tutorial.rs"]
mod tutorial;

use assert_cmd::Command;
use std::path::{Path, PathBuf};

/// The tutorial's workspace, and the command in its dataset project.
struct Project {
    dir: tempfile::TempDir,
    folder: PathBuf,
}

impl Project {
    fn new() -> Project {
        let dir = tempfile::tempdir().unwrap();
        let folder = tutorial::workspace(dir.path()).join("lovecraft_dataset");
        Project { dir, folder }
    }

    fn command(&self, arguments: &str) -> Command {
        let mut command = Command::cargo_bin("fathom").unwrap();
        command.current_dir(&self.folder).env("FATHOM_CACHE", self.dir.path().join("cache"));
        command.args(arguments.split_whitespace());
        command
    }

    /// What a command prints that goes well.
    fn run(&self, arguments: &str) -> String {
        let output = self.command(arguments).output().unwrap();
        let error = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{arguments}: {error}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// What a command says that goes wrong.
    fn refused(&self, arguments: &str) -> String {
        let output = self.command(arguments).output().unwrap();
        assert!(!output.status.success(), "{arguments}: it was accepted");
        String::from_utf8(output.stderr).unwrap()
    }

    fn text(&self, name: &str) -> String {
        std::fs::read_to_string(self.dir.path().join("hp_lovecraft").join(name)).unwrap()
    }
}

/// One printed block.
#[derive(Debug, PartialEq)]
struct Printed {
    header: String,
    starts: Vec<usize>,
    ids: Vec<u32>,
}

/// Blocks printed with `--features input_ids document_starts`.
fn printed(text: &str) -> Vec<Printed> {
    fn list<T: std::str::FromStr>(line: &str) -> Vec<T> {
        let items = line.trim_matches(['[', ']']).split(", ");
        items.map(|item| item.parse().ok().unwrap()).collect()
    }
    text.split("Document Starts: ")
        .skip(1)
        .map(|block| {
            let lines: Vec<&str> = block.lines().collect();
            let after = |title: &str| {
                let at = lines.iter().position(|line| line.trim_matches('*') == title).unwrap();
                lines[at + 2]
            };
            let starts: Vec<usize> = list(lines[0]);
            assert_eq!(list::<usize>(after("document_starts")), starts);
            let header = lines[1].trim_matches('-').trim().to_string();
            Printed { header, starts, ids: list(after("input_ids")) }
        })
        .collect()
}

const BLOCKS: &str = "dataset --target train_dataset -T bytes --features input_ids document_starts";

/// BOS of the byte tokenizer.
const BOS: u32 = 256;

#[test]
fn row_14_dataset_prints_a_complete_story() {
    let project = Project::new();
    let text = project.run("dataset --target train_dataset_split -n 1");
    let story = project.text("at_the_mountains_of_madness.txt");
    let dashes = "-".repeat(29);
    let expected = format!(
        "split=Dataset({{\n    features: ['text'],\n    num_rows: 4\n}})\n\
         Printing 1 examples from the dataset (stride=1):\n\
         {dashes} 0 Features: ['text'] {dashes}\n******text******\n\n{story}\n\n"
    );
    assert_eq!(text, expected);
    let every_other = project.run("dataset -n 5 --example-stride 2 --truncate 10");
    let heads = every_other.lines().filter(|line| line.contains("Features: ['text']"));
    let heads: Vec<&str> = heads.map(|line| line.trim_matches('-').trim()).collect();
    assert_eq!(heads, ["0 Features: ['text']", "2 Features: ['text']"]);
    assert!(every_other.contains(&format!("\n\n{}...\n", &story[..10])), "{every_other}");
}

#[test]
fn row_15_dataset_blocks_overlap_by_stride() {
    let project = Project::new();
    let arguments = format!("{BLOCKS} --max-length 64 --stride 8 -s -n 3");
    let text = project.run(&arguments);
    assert!(text.starts_with("Tokenizer:\nbytes: 258 ids, BOS 256 `<|bos|>`, EOS 257"), "{text}");
    let features = "['input_ids', 'document_starts']";
    assert!(text.contains(&format!("split=Dataset({{\n    features: {features},\n")), "{text}");
    let blocks = printed(&text);
    assert_eq!(blocks.len(), 3);
    for (index, block) in blocks.iter().enumerate() {
        assert!(block.ids.len() <= 64);
        assert_eq!((block.ids[0], &block.starts[..]), (BOS, &[0][..]));
        assert_eq!(block.ids.iter().filter(|&&id| id == BOS).count(), 1);
        let header =
            format!("{index} Tokens: {}, Documents: 1, Features: {features}", block.ids.len());
        assert_eq!(block.header, header);
    }
    for pair in blocks.windows(2) {
        let (before, block) = (&pair[0].ids, &pair[1].ids);
        assert_eq!(before[before.len() - 8..], block[1..9]);
        assert_ne!(before[before.len() - 9], block[0]);
    }
    // Without --features, the text.
    let text = project.run("dataset --target train_dataset -T bytes --max-length 64 -s -n 1");
    let story = project.text("at_the_mountains_of_madness.txt");
    assert!(text.contains(&format!("\n<|bos|>{}\n", &story[..63])), "{text}");
}

#[test]
fn row_16_a_dataset_looked_at_alone_has_its_own_length() {
    let project = Project::new();
    let whole = project.run("dataset --target train_dataset -T bytes");
    // No story has 4096 bytes.
    assert!(whole.contains("Packed 4 documents into 4 blocks of "), "{whole}");
    let short = project.run("dataset --target train_dataset -T bytes --max-length 128");
    assert!(short.contains(" to 128 tokens (median 128; "), "{short}");
}

#[test]
fn row_18_packed_blocks_are_shuffled_by_their_seed() {
    let project = Project::new();
    let packed = format!("-t lovecraft-packed.yaml {BLOCKS} --max-length 256 -s -n 100");
    let first = project.run(&packed);
    // The second time the tokens come from the cache, and are the same.
    assert!(!first.contains("tokens from the cache"), "{first}");
    let second = project.run(&packed);
    assert!(second.contains("; tokens from the cache\n"), "{second}");
    let (first, second) = (printed(&first), printed(&second));
    assert_eq!(first, second);
    assert!(first.len() > 5);
    // In packing order full blocks come first, then the rests.
    let is_full: Vec<bool> = first.iter().map(|block| block.ids.len() == 256).collect();
    assert!(!is_full.is_sorted_by(|a, b| a >= b), "{is_full:?}");
    // The tutorial's own call.
    let peek = "-t lovecraft-packed.yaml dataset --target train_dataset -T bytes --max-length 4096 -s -n 2";
    let text = project.run(peek);
    assert!(text.contains("Document Starts: [0, "), "{text}");
}

#[test]
fn row_20_histogram_prints_statistics_and_draws_beside_the_project() {
    let project = Project::new();
    let arguments = "-t lovecraft-packed.yaml dataset --target train_dataset -T bytes --max-length 256 -s --histogram";
    let text = project.run(arguments);
    let lengths: Vec<usize> = {
        let packed = format!("-t lovecraft-packed.yaml {BLOCKS} --max-length 256 -s -n 100");
        printed(&project.run(&packed)).iter().map(|block| block.ids.len()).collect()
    };
    let n = lengths.len() as f64;
    let mean = lengths.iter().sum::<usize>() as f64 / n;
    let squares: f64 = lengths.iter().map(|&x| (x as f64 - mean).powi(2)).sum();
    let mut sorted = lengths.clone();
    sorted.sort();
    let hundredths = |x: f64| (x * 100.0).round() / 100.0;
    let expected = format!(
        "sample size: {n}\nmin: {}\nmax: {}\nmean: {}\nmedian: {}\nstd: {}\n",
        sorted[0],
        sorted[sorted.len() - 1],
        hundredths(mean),
        sorted[(sorted.len() - 1) / 2],
        hundredths((squares / (n - 1.0)).sqrt())
    );
    assert!(text.contains(&expected), "{text}\nexpected {expected}");
    let svg = std::fs::read_to_string(project.folder.join("lovecraft-packed.svg")).unwrap();
    assert!(svg.contains(r#"role="img""#) && svg.contains("viewBox="), "{svg}");
    assert!(
        svg.contains("<title id=\"title\">lovecraft-packed: tokens in a block of train_dataset")
    );

    // Of documents, and of some of them: the same ones each time.
    let some = "dataset -T bytes -H --histogram-samples 2";
    let text = project.run(some);
    assert!(text.contains("sample size: 2\n"), "{text}");
    assert_eq!(project.run(some), text);
    assert!(project.folder.join("lovecraft.svg").is_file());
    assert_ne!(project.run(&format!("{some} --seed 5")), text);
}

#[test]
fn documents_are_selected_shuffled_and_divided() {
    let project = Project::new();
    let rows = |arguments: &str| {
        let text = project.run(&format!("dataset {arguments}"));
        let rows = text.split("num_rows: ").nth(1).unwrap().split('\n').next().unwrap();
        rows.parse::<usize>().unwrap()
    };
    assert_eq!(rows(""), 4);
    assert_eq!(rows("--select-range 25%:"), 3);
    assert_eq!(rows("--select-range -1:"), 1);
    assert_eq!(rows("--select-range 0.5"), 2);
    assert_eq!(rows("--num-shards 3 --shard-index 0"), 2);
    assert_eq!(rows("--num-shards 3 --shard-index 2"), 1);
    assert_eq!(rows("--target validation_dataset_split"), 1);
    let texts = |arguments: &str| project.run(&format!("dataset -n 4 --truncate 30 {arguments}"));
    assert_ne!(texts("--seed 1"), texts(""));
    assert_eq!(texts("--seed 1"), texts("--seed 1"));
}

#[test]
fn mistakes_say_what_was_expected() {
    let project = Project::new();
    for (arguments, expected) in [
        (
            "dataset --target train_dataset",
            "error: -T: expected a tokenizer for the tokens of `train_dataset`, found none",
        ),
        ("dataset --histogram", "error: -T: expected a tokenizer for the tokens of"),
        (
            "dataset -T bytes -s",
            "error: --tokenized: expected a target of blocks, found `train_dataset_split`, which is documents",
        ),
        (
            "dataset --features input_ids",
            "error: --features: expected features of `train_dataset_split` (text), found `input_ids`",
        ),
        (
            "dataset --target dataset_dict",
            "error: --target: expected one split, found `dataset_dict`, which is train, validation, test",
        ),
        ("dataset --target train_datasett", "did you mean `train_dataset`?"),
        (
            "dataset --select-range 80%:10%",
            "expected a range with documents in it, found `80%:10%`",
        ),
        ("dataset --example-stride 0", "error: --example-stride: expected 1 or more, found 0"),
        (
            "dataset --num-shards 2 --shard-index 2",
            "error: --shard-index: expected less than --num-shards (2), found 2",
        ),
        (
            "dataset --target train_dataset -T bytes --max-length 64 --stride 63",
            "data.stride: expected at most 62 (a block has to hold something new), found `63`",
        ),
        ("dataset --set data.stride=8", "error: --set: expected a corpus or a configuration file"),
    ] {
        let found = project.refused(arguments);
        assert!(found.contains(expected), "{arguments}: {found}");
    }
}

#[test]
fn it_is_written_to_a_file() {
    let project = Project::new();
    let target = project.dir.path().join("out.txt");
    let plain = project.run("dataset -n 1");
    let printed = project.run(&format!("dataset -n 1 -o {}", target.display()));
    assert_eq!(printed, "");
    assert_eq!(std::fs::read_to_string(target).unwrap(), plain);
    let with_configuration = project.run("dataset --pp -n 1");
    assert!(
        with_configuration.starts_with("Preprocessed configuration:\n"),
        "{with_configuration}"
    );
    assert!(with_configuration.contains("block_tokenize_fn"), "{with_configuration}");
}

#[test]
fn a_corpus_or_a_configuration_needs_no_project() {
    let dir = tempfile::tempdir().unwrap();
    tutorial::corpus(&dir.path().join("texts"));
    let command = |arguments: &str| {
        let mut command = Command::cargo_bin("fathom").unwrap();
        command.current_dir(dir.path()).env("FATHOM_CACHE", "");
        command.arg("dataset").args(arguments.split_whitespace());
        let output = command.output().unwrap();
        let text = output.stdout.into_iter().chain(output.stderr).collect();
        (output.status.success(), String::from_utf8(text).unwrap())
    };
    let (ok, text) = command("texts");
    assert!(ok && text.contains("num_rows: 4"), "{text}");
    let blocks = "--target train_dataset -T bytes -s --set train.sequence_length=64";
    let (ok, text) = command(&format!("texts {blocks} --set data.packing=best_fit -H"));
    assert!(ok && text.contains(" to 64 tokens (median 64; "), "{text}");
    assert!(dir.path().join("texts.svg").is_file());

    let run = "model: {path: m}\ntokenizer: {path: bytes}\n\
               data: {corpus: texts, splits: {validation: [dagon]}, sample_by: document}\n\
               train: {sequence_length: 32, total_tokens: 1K, learning_rate: 1e-5}\n";
    std::fs::write(dir.path().join("run.yaml"), run).unwrap();
    let (ok, text) = command("run.yaml --target eval_dataset -n 1");
    assert!(
        ok && text.contains("Packed 1 documents into ") && text.contains(" to 32 tokens"),
        "{text}"
    );
    let (ok, text) = command("run.yaml --target trainset");
    let expected =
        "error: --target: expected `SPLIT_dataset_split` (documents) or `SPLIT_dataset` (blocks)";
    assert!(!ok && text.contains(expected), "{text}");
    let (ok, text) = command("texts --set data.strides=8");
    assert!(!ok && text.contains("did you mean `stride`?"), "{text}");
    let (ok, text) = command("texts --lengt 3");
    assert!(!ok && text.contains("unexpected argument '--lengt' found"), "{text}");
    assert!(
        text.contains("note: options of a configuration's own are known in its project"),
        "{text}"
    );
    let (ok, text) = command("nowhere");
    assert!(!ok && text.contains("corpus nowhere: expected a folder"), "{text}");
    assert!(!Path::new(&dir.path().join("nowhere.svg")).exists());
}
