//! Cuts long texts where that provably leaves the ids as they are, so that one text can be encoded on all cores.
//!
//! Byte-level BPE first splits a text by a regular expression that is matched from left to right, and merges inside the
//! parts alone. Every expression in use ends a part between a letter and a space that another letter follows, looks at
//! most one character ahead, never back, and begins the next part with that space. So before such a space the text may
//! be cut. Whether a tokenizer is of this kind is decided by its own rules, in [`is_safe_for`]; others get texts whole.

use super::embedded::PATTERNS;
use serde_json::Value;
use tokenizers::Tokenizer;

/// Bytes of a piece, at least. Large against the cost of one call, small against a book.
const PIECE_BYTES: usize = 1 << 15;

/// The pieces of `text`: all of it, in order, cut before a single space between two lower-case ASCII letters.
pub fn cut(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let bytes = rest.as_bytes();
        let is_place =
            |w: &[u8]| w[0].is_ascii_lowercase() && w[1] == b' ' && w[2].is_ascii_lowercase();
        let place = bytes.get(PIECE_BYTES..).and_then(|tail| tail.windows(3).position(is_place));
        let (piece, tail) = rest.split_at(place.map_or(bytes.len(), |at| PIECE_BYTES + at + 1));
        rest = tail;
        Some(piece)
    })
}

/// Whether `tokenizer` splits by expressions that are known to allow [`cut`], and does nothing else to a text before.
pub fn is_safe_for(tokenizer: &Tokenizer) -> bool {
    let Ok(splitter) = serde_json::to_value(tokenizer.get_pre_tokenizer()) else { return false };
    let model = serde_json::to_value(tokenizer.get_normalizer());
    let has_normalizer = !model.is_ok_and(|normalizer| normalizer.is_null());
    let is_bpe = matches!(tokenizer.get_model(), tokenizers::ModelWrapper::BPE(_));
    let added_are_plain = tokenizer
        .get_added_tokens_decoder()
        .values()
        .all(|t| !t.lstrip && !t.rstrip && !t.single_word && !t.content.contains(' '));
    is_bpe && !has_normalizer && added_are_plain && splits(&splitter) == Some(true)
}

/// Whether `rules` split by a known expression; none where any rule is not known.
fn splits(rules: &Value) -> Option<bool> {
    match rules["type"].as_str()? {
        "Sequence" => {
            let rules = rules["pretokenizers"].as_array()?;
            rules.iter().try_fold(false, |any, rule| Some(splits(rule)? | any))
        }
        "ByteLevel" => {
            let is_plain = rules["add_prefix_space"] == false;
            is_plain.then_some(rules["use_regex"] == true)
        }
        "Digits" => Some(false),
        "Split" => {
            let is_known = PATTERNS.contains(&rules["pattern"]["Regex"].as_str()?)
                && rules["behavior"] == "Isolated"
                && rules["invert"] == false;
            is_known.then_some(true)
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_the_text_cut_before_a_space_between_letters() {
        let text = "A line, of 20 words; é and\nso on. ".repeat(5000);
        let pieces: Vec<_> = cut(&text).collect();
        assert_eq!(pieces.concat(), text);
        assert!(pieces.len() > 4);
        for piece in &pieces[1..] {
            assert!(piece.starts_with(" a") || piece.starts_with(" w") || piece.starts_with(" o"));
        }
        assert_eq!(cut("").count(), 0);
        let unbroken = "x".repeat(100_000);
        assert_eq!(cut(&unbroken).count(), 1);
    }
}
