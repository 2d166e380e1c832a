//! Reads the tensors of `pytorch_model*.bin`, the zip archives of `torch.save`, without executing their pickle.
//!
//! The archive holds the mapping in `<top>/data.pkl` and the bytes of each storage, not compressed, in `<top>/data/<key>`.
//! A tensor is a view of a storage: offset, sizes, strides, in elements.

use super::pickle::{Storage, View, unpickle};
use super::{WeightFile, map_file};
use anyhow::{Context, Result, anyhow, ensure};
use memmap2::Mmap;
use std::collections::{BTreeMap, HashMap};
use std::io::Cursor;
use std::ops::Range;
use std::path::{Path, PathBuf};
use tch::{Kind, Tensor};
use zip::{CompressionMethod, ZipArchive};

pub(super) struct TorchFile {
    path: PathBuf,
    map: Mmap,
    tensors: BTreeMap<String, View>,
    /// Where each storage lies in the file, by its key.
    storages: HashMap<String, Range<usize>>,
}

impl TorchFile {
    /// # Errors
    ///
    /// When the file is no such archive or is cut short, when its pickle asks for anything but tensors, or a tensor does
    /// not fit within its storage.
    pub(super) fn open(path: &Path) -> Result<TorchFile> {
        let map = map_file(path)?;
        let (tensors, storages) = read_archive(&map).with_context(|| path.display().to_string())?;
        Ok(TorchFile { path: path.to_path_buf(), map, tensors, storages })
    }
}

impl WeightFile for TorchFile {
    fn path(&self) -> &Path {
        &self.path
    }

    fn shapes(&self) -> Vec<(String, Vec<i64>)> {
        self.tensors.iter().map(|(name, view)| (name.clone(), view.size.clone())).collect()
    }

    fn tensor(&self, name: &str) -> Result<Tensor> {
        let place = || format!("{}: {name}", self.path.display());
        let view = &self.tensors[name];
        let kind = view.storage.kind;
        ensure!(
            matches!(kind, Kind::Float | Kind::Half | Kind::BFloat16 | Kind::Double),
            "{}: expected a float dtype, found {kind:?}",
            place()
        );
        let elements = view.elements().expect("views are checked when they are read");
        let storage = &self.map[self.storages[&view.storage.key].clone()];
        let size = kind.elt_size_in_bytes();
        let bytes = &storage[elements.start * size..elements.end * size];
        let read = || -> Result<Tensor> {
            let flat = Tensor::f_from_data_size(bytes, &[elements.len() as i64], kind)?;
            Ok(flat.f_as_strided(&view.size, &view.stride, None)?.f_contiguous()?)
        };
        read().with_context(place)
    }
}

type Archive = (BTreeMap<String, View>, HashMap<String, Range<usize>>);

fn read_archive(file: &[u8]) -> Result<Archive> {
    const TORCH_SAVE: &str = "torch.save(torch.load(FILE, weights_only=True), FILE)";
    ensure!(
        file.starts_with(b"PK"),
        "expected a zip archive, as torch.save writes since PyTorch 1.6, found another format\n  help: a file of an older PyTorch is rewritten by `{TORCH_SAVE}` in Python"
    );
    let mut archive = ZipArchive::new(Cursor::new(file)).map_err(|error| {
        anyhow!("expected a whole zip archive, found a damaged one or a part: {error}")
    })?;
    let mut entries = HashMap::new();
    for index in 0..archive.len() {
        let entry = archive.by_index_raw(index).with_context(|| format!("zip entry {index}"))?;
        let name = entry.name().to_string();
        ensure!(
            entry.compression() == CompressionMethod::Stored,
            "{name}: expected an entry that is not compressed, found {:?}",
            entry.compression()
        );
        let (begin, size) = (entry.data_start() as usize, entry.size() as usize);
        let end = begin.checked_add(size).filter(|&end| end <= file.len());
        let end = end.ok_or_else(|| {
            anyhow!(
                "{name}: expected {size} bytes at {begin}, found the file's end at {}",
                file.len()
            )
        })?;
        entries.insert(name, begin..end);
    }

    let top = entries.keys().find_map(|name| name.strip_suffix("/data.pkl"));
    let top = top.context("expected the entry `data.pkl` of torch.save, found none")?.to_string();
    if let Some(order) = entries.get(&format!("{top}/byteorder")) {
        let order = String::from_utf8_lossy(&file[order.clone()]);
        ensure!(order == "little", "byteorder: expected `little`, found `{order}`");
    }
    let tensors = unpickle(&file[entries[&format!("{top}/data.pkl")].clone()])?;

    let mut storages = HashMap::new();
    for (name, view) in &tensors {
        let Storage { kind, key, num_elements } = &view.storage;
        let entry = format!("{top}/data/{key}");
        let range = entries.get(&entry).cloned();
        let range =
            range.with_context(|| format!("{name}: expected the entry `{entry}`, found none"))?;
        let expected = num_elements.checked_mul(kind.elt_size_in_bytes() as i64);
        ensure!(
            expected == Some(range.len() as i64),
            "{name}: expected {num_elements} {kind:?} elements in `{entry}`, found {} bytes",
            range.len()
        );
        ensure!(
            view.elements().is_some(),
            "{name}: expected a view within its storage of {num_elements} elements, found offset {}, size {:?}, stride {:?}",
            view.offset,
            view.size,
            view.stride
        );
        storages.insert(key.clone(), range);
    }
    Ok((tensors, storages))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use zip::ZipWriter;
    use zip::write::FileOptions;

    const GOLDEN: &[u8] = include_bytes!("../../../../tests/data/weights_torch/pytorch_model.bin");

    /// An archive of `pickle` and of one storage of 24 bytes.
    fn archive(pickle: &[u8]) -> Vec<u8> {
        let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
        let stored = FileOptions::default().compression_method(CompressionMethod::Stored);
        for (name, bytes) in [("m/data.pkl", pickle), ("m/data/0", &[0; 24])] {
            zip.start_file(name, stored).unwrap();
            zip.write_all(bytes).unwrap();
        }
        zip.finish().unwrap().into_inner()
    }

    fn error(file: &[u8]) -> String {
        format!("{:#}", read_archive(file).expect_err("an error"))
    }

    /// `{"w": _rebuild_tensor_v2(…)}` of a float storage of `n` elements, with `offset, size, stride` as written.
    fn tensor(n: u8, view: &[u8]) -> Vec<u8> {
        let storage =
            [b"((U\x07storagectorch\nFloatStorage\nU\x010U\x03cpuK", &[n][..], b"tQ"].concat();
        let named = b"\x80\x02}X\x01\0\0\0wctorch._utils\n_rebuild_tensor_v2\n";
        [&named[..], &storage, view, b"\x89}tRs."].concat()
    }

    #[test]
    fn views_stay_within_their_storage() {
        let read = |n: u8, view: &[u8]| read_archive(&archive(&tensor(n, view)));
        let (tensors, _) = read(6, b"K\x01K\x02K\x02\x86K\x03K\x01\x86").unwrap();
        assert_eq!(tensors["w"].elements(), Some(1..6));
        let (tensors, _) = read(6, b"K\x06K\0\x85K\x01\x85").unwrap();
        assert_eq!(tensors["w"].elements(), Some(6..6));
        for outside in [
            &b"K\x02K\x02K\x02\x86K\x03K\x01\x86"[..], // one element too far
            b"K\x07K\0\x85K\x01\x85",                    // empty, but begins past the end
            b"J\xff\xff\xff\xffK\x02\x85K\x01\x85",     // before the beginning
            b"K\x05K\x02\x85J\xff\xff\xff\xff\x85",     // backwards
            b"K\0K\x02\x85K\x01K\x01\x86",               // a stride more than sizes
            b"K\0\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f\x85\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f\x85",
        ] {
            let error = format!("{:#}", read(6, outside).expect_err("an error"));
            assert!(error.starts_with("w: expected a view within its storage of 6 elements"), "{error}");
        }
        let error = format!("{:#}", read(7, b"K\0K\x01\x85K\x01\x85").expect_err("an error"));
        assert_eq!(error, "w: expected 7 Float elements in `m/data/0`, found 24 bytes");
    }

    #[test]
    fn other_formats_and_parts_are_named() {
        let old = error(b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.");
        assert!(
            old.contains("since PyTorch 1.6")
                && old.contains("help: a file of an older PyTorch is rewritten by"),
            "{old}"
        );
        let cut = error(&GOLDEN[..GOLDEN.len() - 30]);
        assert!(
            cut.starts_with("expected a whole zip archive, found a damaged one or a part"),
            "{cut}"
        );
    }

    proptest::proptest! {
        #![proptest_config(proptest::prelude::ProptestConfig::with_cases(2000))]

        /// Cut anywhere, or any bytes overwritten: views within the file or an error, never a panic.
        #[test]
        fn corrupt_files_never_panic(cut in 0usize..80, at in 0..GOLDEN.len(), junk: [u8; 4]) {
            let mut file = GOLDEN.to_vec();
            for (byte, junk) in file[at..].iter_mut().zip(junk) {
                *byte = junk;
            }
            file.truncate(GOLDEN.len() - cut.saturating_sub(40));
            if let Ok((tensors, storages)) = read_archive(&file) {
                for view in tensors.values() {
                    let elements = view.elements().unwrap();
                    let storage = &storages[&view.storage.key];
                    proptest::prop_assert!(storage.end <= file.len());
                    proptest::prop_assert!(elements.end * view.storage.kind.elt_size_in_bytes() <= storage.len());
                }
            }
        }
    }
}
