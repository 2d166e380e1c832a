//! Reads `*.safetensors`: a JSON header, then the tensors' bytes. <https://huggingface.co/docs/safetensors>.

use super::{WeightFile, map_file};
use anyhow::{Context, Result, anyhow, bail};
use memmap2::Mmap;
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, Metadata, SafeTensorError};
use std::path::{Path, PathBuf};
use tch::{Kind, Tensor};

pub(super) struct SafetensorsFile {
    path: PathBuf,
    map: Mmap,
    metadata: Metadata,
    /// Byte of the file at which the tensors begin.
    data_start: usize,
}

impl SafetensorsFile {
    /// # Errors
    ///
    /// When the header is not valid, or the tensors it lists do not end where the file ends.
    pub(super) fn open(path: &Path) -> Result<SafetensorsFile> {
        let map = map_file(path)?;
        let (header_length, metadata) = SafeTensors::read_metadata(&map)
            .map_err(|error| anyhow!("{}: {}", path.display(), explain(&map, &error)))?;
        // The header's length itself takes eight bytes.
        let data_start = 8 + header_length;
        Ok(SafetensorsFile { path: path.to_path_buf(), map, metadata, data_start })
    }
}

impl WeightFile for SafetensorsFile {
    fn path(&self) -> &Path {
        &self.path
    }

    fn shapes(&self) -> Vec<(String, Vec<i64>)> {
        let tensors = self.metadata.tensors().into_iter();
        tensors.map(|(name, info)| (name, shape(&info.shape))).collect()
    }

    fn tensor(&self, name: &str) -> Result<Tensor> {
        let place = || format!("{}: {name}", self.path.display());
        let info = self.metadata.info(name).expect("a name of `shapes`");
        let kind = match info.dtype {
            Dtype::F32 => Kind::Float,
            Dtype::F16 => Kind::Half,
            Dtype::BF16 => Kind::BFloat16,
            Dtype::F64 => Kind::Double,
            other => bail!(
                "{}: expected F32, F16, BF16 or F64, found {other}\n  help: quantized weights are read from GGUF files only",
                place()
            ),
        };
        let (begin, end) = info.data_offsets;
        let bytes = &self.map[self.data_start + begin..self.data_start + end];
        Tensor::f_from_data_size(bytes, &shape(&info.shape), kind).with_context(place)
    }
}

fn shape(sizes: &[usize]) -> Vec<i64> {
    sizes.iter().map(|&size| size as i64).collect()
}

/// What is wrong with `file`, with the numbers that `error` does not give.
fn explain(file: &[u8], error: &SafeTensorError) -> String {
    let found = file.len();
    let header_length = file.first_chunk().map(|bytes| u64::from_le_bytes(*bytes));
    match (error, header_length) {
        (SafeTensorError::HeaderTooSmall, _) | (_, None) => {
            format!("expected a safetensors file, found {found} bytes")
        }
        (SafeTensorError::HeaderTooLarge | SafeTensorError::InvalidHeaderLength, Some(length)) => {
            format!(
                "expected a header of {length} bytes, found a file of {found}: it is cut short or no safetensors file"
            )
        }
        (SafeTensorError::MetadataIncompleteBuffer, Some(length)) => {
            let end = |info: &serde_json::Value| info["data_offsets"][1].as_u64();
            let header = &file[8..8 + length as usize];
            let header: serde_json::Value = serde_json::from_slice(header).unwrap_or_default();
            let tensors = header.as_object().map(|tensors| tensors.values());
            let data = tensors.into_iter().flatten().filter_map(end).max().unwrap_or(0);
            let expected = 8 + length + data;
            let why = if (found as u64) < expected {
                "it is cut short"
            } else {
                "something follows the tensors"
            };
            format!("expected {expected} bytes by its header, found {found}: {why}")
        }
        _ => format!("expected a safetensors file: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(header: &str, data: usize) -> Vec<u8> {
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        bytes.resize(bytes.len() + data, 0);
        bytes
    }

    fn open(bytes: &[u8]) -> Result<SafetensorsFile> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.safetensors");
        std::fs::write(&path, bytes).unwrap();
        SafetensorsFile::open(&path)
    }

    #[test]
    fn damaged_files_say_what_is_wrong() {
        let check = |bytes: &[u8], expected: &str| {
            let error = open(bytes).err().expect("an error").to_string();
            assert!(error.contains("m.safetensors: ") && error.ends_with(expected), "{error}");
        };
        let header = r#"{"a":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]}}"#;
        let good = file(header, 24);
        assert_eq!(open(&good).unwrap().shapes(), [("a".to_string(), vec![2, 3])]);
        check(&file(header, 20), "expected 89 bytes by its header, found 85: it is cut short");
        check(
            &file(header, 25),
            "expected 89 bytes by its header, found 90: something follows the tensors",
        );
        check(
            &good[..40],
            "expected a header of 57 bytes, found a file of 40: it is cut short or no safetensors file",
        );
        check(&good[..4], "expected a safetensors file, found 4 bytes");
        check(b"", "expected a safetensors file, found 0 bytes");
        check(
            b"version https://git-lfs.github.com/spec/v1\n",
            "found a Git LFS pointer to them\n  help: fetch them with `git lfs pull`",
        );
        let wrong = header.replace("[2,3]", "[2,4]");
        check(&file(&wrong, 24), "invalid shape, data type, or offset for tensor");
    }

    #[test]
    fn quantized_tensors_are_refused() {
        let header = r#"{"a":{"dtype":"I8","shape":[2],"data_offsets":[0,2]}}"#;
        let error = open(&file(header, 2)).unwrap().tensor("a").unwrap_err().to_string();
        assert!(
            error.contains("m.safetensors: a: expected F32, F16, BF16 or F64, found I8"),
            "{error}"
        );
    }

    proptest::proptest! {
        /// Cut anywhere, or any bytes overwritten: tensors or an error, never a panic.
        #[test]
        fn corrupt_files_never_panic(cut in 0usize..89, at in 0usize..89, junk: [u8; 4]) {
            let mut bytes = file(r#"{"a":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]}}"#, 24);
            for (byte, junk) in bytes[at..].iter_mut().zip(junk) {
                *byte = junk;
            }
            bytes.truncate(89 - cut);
            if let Ok(file) = open(&bytes) {
                for (name, shape) in file.shapes() {
                    if let Ok(tensor) = file.tensor(&name) {
                        proptest::prop_assert_eq!(tensor.size(), shape);
                    }
                }
            }
        }
    }
}
