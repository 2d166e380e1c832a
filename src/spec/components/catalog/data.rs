//! Documents and how they become blocks.

use crate::components::Kind::{Any, Bool, Int, Path, Text};
use crate::components::{Component, Kind, Role, optional, required};

const STREAMS: &str = "documents are held in memory, and training goes over them again and again";
const DRAWN: &str = "the blocks of an epoch are drawn in an order that the run's seed decides";
const ONE_DEVICE: &str = "one process trains on one device, with all of the data";

/// What a map function is told beside its own arguments, and how it is called.
pub const MAP_KWARGS: Component = Component::new(
    "map_kwargs",
    &[],
    Role::Data,
    "How a map function is called: the mapping `map_kwargs` of preprocess_dataset.",
    &[
        optional(
            "batch_size",
            Int,
            "null",
            "documents that packing runs over at a time; null is all of them",
        ),
        optional("batched", Bool, "True", "whether the function gets many documents at once")
            .refused("leave it out: packing is over many documents"),
        optional("num_proc", Int, "null", "processes to tokenize with")
            .reported("all cores tokenize, in one process"),
        optional("load_from_cache_file", Bool, "True", "whether earlier results are used")
            .reported("blocks are cached by what they are made of"),
        optional("writer_batch_size", Int, "1000", "rows that are written at a time")
            .reported("blocks are held in memory"),
        optional("keep_in_memory", Bool, "False", "whether results stay in memory")
            .reported("blocks are held in memory"),
        optional("desc", Text, "null", "what a progress bar shows"),
    ],
);

/// The one map function.
pub const BLOCK_TOKENIZE_FN: Component = Component::new(
    "block_tokenize_fn",
    &[
        "forgather.ml.datasets:block_tokenize_fn",
        "forgather.ml.datasets.block_tokenizer:block_tokenize_fn",
    ],
    Role::Data,
    "Tokenizes documents and cuts or packs them into blocks of at most `max_length` tokens. A document begins with BOS and \
     ends with EOS; one that goes on in another block begins there with BOS again. No block has two BOS in a row, is BOS alone \
     or repeats only what the one before it has, and what is dropped is counted.",
    &[
        optional("tokenizer", Any, "null", "the tokenizer; preprocess_dataset gives it"),
        optional("feature", Text, "text", "the column that holds the text")
            .refused("text files have the one column `text`"),
        optional(
            "max_length",
            Int,
            "512",
            "the most tokens in a block; the training project's seq_len wins over it",
        ),
        optional(
            "overflow",
            Bool,
            "True",
            "whether a document goes on in another block, or its rest is dropped",
        ),
        optional("packed", Bool, "False", "whether documents share blocks"),
        optional(
            "packing_strategy",
            Text,
            "greedy",
            "greedy (back to back in their order), best_fit or first_fit (whole \
                 documents, longest first)",
        ),
        optional(
            "shuffle_output",
            Bool,
            "False",
            "whether the blocks are shuffled once, as Python's random does",
        ),
        optional("seed", Int, "42", "seeds that shuffle"),
        optional(
            "stride",
            Int,
            "0",
            "tokens that a continued document repeats from its block before",
        ),
        optional(
            "min_len",
            Int,
            "1",
            "documents and blocks of fewer tokens are dropped, and counted",
        ),
        optional("max_len", Int, "null", "documents of more tokens are dropped, and counted"),
        optional(
            "add_bos",
            Bool,
            "True",
            "begin each document with BOS, where the tokenizer has one",
        ),
        optional(
            "add_eos",
            Bool,
            "True",
            "end each document with EOS, where the tokenizer has one",
        ),
        optional(
            "truncate_at",
            Text,
            "null",
            "a regular expression; a document ends before its first match",
        ),
        optional("truncation", Bool, "False", "what other map functions know")
            .reported("documents go on in another block; `overflow: False` drops their rests"),
    ],
);

pub const COMPONENTS: &[Component] = &[
    Component::new(
        "load_dataset",
        &["datasets:load_dataset"],
        Role::Data,
        "Text files in named splits.",
        &[
            required("path", Text, "`text`: the one format there is"),
            optional("name", Text, "null", "a configuration of a hub's dataset")
                .refused("nothing is fetched: put text files into a folder and name it in data_dir"),
            optional("data_dir", Path, "null", "a folder, or an archive (.tgz) of one"),
            optional("data_files", Any, "null", "split -> a file name pattern or a list of them; a pattern or a list alone is \
                     the split `train`"),
            optional("split", Text, "null", "take this split instead of all of them"),
            optional("sample_by", Text, "line", "what one document is: document (a file), paragraph or line"),
            optional("cache_dir", Path, "null", "where other systems keep what they fetched")
                .reported("text files are read where they are"),
            optional("streaming", Bool, "False", "whether documents are read as they are needed").reported(STREAMS),
            optional("encoding", Text, "utf-8", "the encoding of the files").refused("convert the files to UTF-8"),
            optional("keep_linebreaks", Bool, "False", "whether a line keeps its line break")
                .reported("documents and paragraphs keep their line breaks, lines have none"),
        ],
    ),
    Component::new(
        "load_from_disk",
        &["datasets:load_from_disk"],
        Role::Data,
        "A dataset in the Arrow files of another library.",
        &[
            required("dataset_path", Path, "its folder"),
            optional("keep_in_memory", Bool, "null", "whether it is read whole"),
        ],
    )
    .refused("use load_dataset with `arg0: \"text\"` and data_dir on a folder of text files, one document a file"),
    Component::new(
        "preprocess_dataset",
        &[
            "forgather.ml.datasets:preprocess_dataset",
            "forgather.ml.datasets.preprocess:preprocess_dataset",
        ],
        Role::Data,
        "A split's documents, tokenized and cut into blocks by a map function.",
        &[
            required("dataset", Any, "a split"),
            optional("tokenizer", Any, "null", "the tokenizer; null: the one of the run"),
            optional("select_range", Any, "null", "which documents: n, a share (0.25), `10%:80%`, or [first, end]"),
            optional("to_iterable", Bool, "False", "whether documents are read as they are needed").reported(STREAMS),
            optional("feature", Text, "text", "the column that holds the text")
                .refused("text files have the one column `text`"),
            optional("shuffle", Bool, "False", "whether documents are shuffled").reported(DRAWN),
            optional("num_shards", Int, "256", "parts that a stream is read in").reported(STREAMS),
            optional("desc", Text, "null", "what a progress bar shows"),
            optional("seed", Int, "42", "seeds the shuffle of documents").reported(DRAWN),
            optional("shuffle_buffer_size", Int, "1000", "documents that a stream's shuffle holds").reported(STREAMS),
            required("map_fn", Kind::Component, "a `!partial` of block_tokenize_fn"),
            optional("map_kwargs", Kind::ArgumentsOf(&MAP_KWARGS), "null", "how the map function is called: see map_kwargs"),
            optional("fn_kwargs", Any, "null", "arguments that win over the map function's own; the training project's \
                     preprocess_args come in here"),
            optional("dataset_type", Text, "null", "the class that another library would make").reported(STREAMS),
            optional("dataset_length", Int, "null", "how many rows a stream has").reported(STREAMS),
            optional("remove_columns", Bool, "True", "whether the text is dropped once it is tokenized")
                .reported("blocks hold tokens only"),
            optional("shard_dataset", Any, "False", "which part of the data this process reads").reported(ONE_DEVICE),
        ],
    ),
    BLOCK_TOKENIZE_FN,
    MAP_KWARGS,
    Component::new(
        "DataCollatorForCausalLM",
        &[
            "forgather.ml.data_collator:DataCollatorForCausalLM",
            "forgather.ml.data_collator:DataCollatorForCausalLanguageModeling",
        ],
        Role::Data,
        "Makes batches of blocks. Blocks are laid end to end without padding, documents do not see each other, and no label \
         crosses from one to the next.",
        &[
            optional("tokenizer", Any, "null", "the tokenizer"),
            optional("truncation", Bool, "False", "cut what is longer than max_length")
                .reported("no block is longer: the dataset is cut to the training sequence length"),
            optional("ignore_index", Int, "-100", "the label of a position that predicts nothing")
                .refused("leave it at -100"),
            optional("input_name", Text, "input_ids", "the name of the tokens").refused("leave it out"),
            optional("labels_name", Text, "labels", "the name of the labels").refused("leave it out"),
            optional("packed_sequences", Any, "null", "whether documents of one block are kept apart")
                .reported("documents of one block are always kept apart"),
            optional("padding", Any, "null", "how blocks are made equally long").reported(NO_PADDING),
            optional("max_length", Int, "null", "the training sequence length; it has to be that of the dataset"),
            optional("pad_to_multiple_of", Int, "null", "a number that lengths are a multiple of").reported(NO_PADDING),
            optional("return_tensors", Text, "pt", "the library whose tensors are made").refused("leave it out"),
        ],
    ),
];

const NO_PADDING: &str = "blocks are laid end to end: there is nothing to pad";
