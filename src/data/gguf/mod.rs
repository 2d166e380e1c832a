//! Reads GGUF, the container of quantized checkpoints: metadata, and tensors in a memory map.
//!
//! The format is described in <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>. Versions 2 and 3 are read,
//! little-endian. Everything a file says about itself is checked against its size before it is believed: a truncated or
//! corrupt file is an error, never a panic, and never an allocation that the file's size does not justify.

mod dequantize;

pub use dequantize::dequantize;

use anyhow::{Context, Result, anyhow, bail, ensure};
use memmap2::Mmap;
use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::path::{Path, PathBuf};

/// The file begins with these four bytes.
const MAGIC: &[u8; 4] = b"GGUF";
/// Where `general.alignment` is not given; from the format's description.
const DEFAULT_ALIGNMENT: u64 = 32;
/// The longest array that is believed. The largest vocabularies have 2^18 entries.
const MAX_ARRAY_LENGTH: u64 = 1 << 24;
/// Arrays of arrays are allowed by the format; no known file nests them deeper than once.
const MAX_ARRAY_DEPTH: usize = 4;
/// `GGML_MAX_DIMS`.
const MAX_DIMENSIONS: u32 = 4;

/// An open GGUF file. Tensor bytes stay in the memory map until they are asked for.
pub struct Gguf {
    pub path: PathBuf,
    /// 2 or 3.
    pub version: u32,
    pub metadata: BTreeMap<String, Value>,
    /// In the order of the file.
    pub tensors: Vec<TensorInfo>,
    map: Mmap,
}

/// One metadata value, in the type that the file gives it.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    F32(f32),
    Bool(bool),
    String(String),
    Array(Vec<Value>),
    U64(u64),
    I64(i64),
    F64(f64),
}

/// Where one tensor lies and how it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    pub name: String,
    /// Row-major, the slowest dimension first: ggml's `ne`, reversed.
    pub shape: Vec<usize>,
    pub dtype: GgmlType,
    /// Bytes from the beginning of the file.
    pub offset: usize,
    /// Length in bytes.
    pub bytes: usize,
}

impl TensorInfo {
    /// The number of elements: the product of `shape`.
    pub fn num_elements(&self) -> usize {
        self.shape.iter().product()
    }
}

/// How the elements of a tensor are stored. Numbers as in `ggml.h`; only types that [`dequantize`] knows.
#[allow(non_camel_case_types)] // ggml's own names
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum GgmlType {
    F32,
    F16,
    BF16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q4_K,
    Q5_K,
    Q6_K,
}

impl GgmlType {
    pub const ALL: [GgmlType; 11] = [
        GgmlType::F32,
        GgmlType::F16,
        GgmlType::BF16,
        GgmlType::Q4_0,
        GgmlType::Q4_1,
        GgmlType::Q5_0,
        GgmlType::Q5_1,
        GgmlType::Q8_0,
        GgmlType::Q4_K,
        GgmlType::Q5_K,
        GgmlType::Q6_K,
    ];

    /// ggml's number of the type.
    pub fn number(self) -> u32 {
        match self {
            GgmlType::F32 => 0,
            GgmlType::F16 => 1,
            GgmlType::Q4_0 => 2,
            GgmlType::Q4_1 => 3,
            GgmlType::Q5_0 => 6,
            GgmlType::Q5_1 => 7,
            GgmlType::Q8_0 => 8,
            GgmlType::Q4_K => 12,
            GgmlType::Q5_K => 13,
            GgmlType::Q6_K => 14,
            GgmlType::BF16 => 30,
        }
    }

    /// ggml's name of the type, such as `Q4_1`.
    pub fn name(self) -> String {
        format!("{self:?}")
    }

    /// Elements in one block; 1 for plain floats.
    pub fn block_length(self) -> usize {
        match self {
            GgmlType::F32 | GgmlType::F16 | GgmlType::BF16 => 1,
            GgmlType::Q4_0 | GgmlType::Q4_1 | GgmlType::Q5_0 | GgmlType::Q5_1 | GgmlType::Q8_0 => {
                32
            }
            GgmlType::Q4_K | GgmlType::Q5_K | GgmlType::Q6_K => 256,
        }
    }

    /// Bytes of one block.
    pub fn block_bytes(self) -> usize {
        match self {
            GgmlType::F32 => 4,
            GgmlType::F16 | GgmlType::BF16 => 2,
            GgmlType::Q4_0 => 18,
            GgmlType::Q4_1 => 20,
            GgmlType::Q5_0 => 22,
            GgmlType::Q5_1 => 24,
            GgmlType::Q8_0 => 34,
            GgmlType::Q4_K => 144,
            GgmlType::Q5_K => 176,
            GgmlType::Q6_K => 210,
        }
    }

    fn from_number(number: u32) -> Option<GgmlType> {
        GgmlType::ALL.into_iter().find(|t| t.number() == number)
    }
}

impl Gguf {
    /// Maps `path` and reads its header. The weights are not read.
    ///
    /// # Errors
    ///
    /// When the file cannot be opened, is not GGUF version 2 or 3, is cut short, contradicts itself (a tensor outside the
    /// file, a name twice, a count that cannot fit), or holds a tensor of a type that [`GgmlType`] does not list.
    pub fn open(path: impl AsRef<Path>) -> Result<Gguf> {
        let path = path.as_ref();
        let file = File::open(path)
            .with_context(|| format!("{}: expected a readable GGUF file", path.display()))?;
        // SAFETY: the map is read only; a file that another process shortens while we read it is outside our promises.
        let map = unsafe { Mmap::map(&file) }
            .with_context(|| format!("{}: cannot be mapped into memory", path.display()))?;
        let (version, metadata, tensors) =
            read_header(&map).with_context(|| path.display().to_string())?;
        Ok(Gguf { path: path.to_path_buf(), version, metadata, tensors, map })
    }

    /// The stored bytes of `tensor`, which must be one of this file's.
    pub fn tensor_bytes(&self, tensor: &TensorInfo) -> &[u8] {
        &self.map[tensor.offset..tensor.offset + tensor.bytes]
    }

    /// The tensor called `name`.
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.tensors.iter().find(|t| t.name == name)
    }

    /// The values of `tensor` as float32, in row-major order. Costs 4 bytes an element.
    pub fn tensor_f32(&self, tensor: &TensorInfo) -> Result<Vec<f32>> {
        let n = tensor.num_elements();
        let mut values = vec![0.0; n];
        dequantize(tensor.dtype, self.tensor_bytes(tensor), n, &mut values)
            .with_context(|| format!("{}: {}", self.path.display(), tensor.name))?;
        Ok(values)
    }

    /// The metadata value `key`.
    ///
    /// # Errors
    ///
    /// When the file has no such key.
    pub fn get(&self, key: &str) -> Result<&Value> {
        self.metadata.get(key).ok_or_else(|| {
            anyhow!("{}: expected the metadata key `{key}`, found none", self.path.display())
        })
    }

    /// The metadata value `key` as a non-negative integer.
    pub fn get_u64(&self, key: &str) -> Result<u64> {
        let value = self.get(key)?;
        value.as_u64().ok_or_else(|| self.wrong_type(key, "a non-negative integer", value))
    }

    /// The metadata value `key` as a float; integers are widened.
    pub fn get_f64(&self, key: &str) -> Result<f64> {
        let value = self.get(key)?;
        value.as_f64().ok_or_else(|| self.wrong_type(key, "a number", value))
    }

    /// The metadata value `key` as text.
    pub fn get_str(&self, key: &str) -> Result<&str> {
        let value = self.get(key)?;
        value.as_str().ok_or_else(|| self.wrong_type(key, "a string", value))
    }

    /// The metadata value `key` as an array.
    pub fn get_array(&self, key: &str) -> Result<&[Value]> {
        let value = self.get(key)?;
        value.as_array().ok_or_else(|| self.wrong_type(key, "an array", value))
    }

    fn wrong_type(&self, key: &str, expected: &str, found: &Value) -> anyhow::Error {
        let found = match found {
            Value::Array(values) => format!("an array of {} values", values.len()),
            value => format!("{value:?}"),
        };
        anyhow!("{}: {key}: expected {expected}, found {found}", self.path.display())
    }
}

impl Value {
    /// The value of any integer type, when it is not negative.
    pub fn as_u64(&self) -> Option<u64> {
        match *self {
            Value::U8(v) => Some(v.into()),
            Value::U16(v) => Some(v.into()),
            Value::U32(v) => Some(v.into()),
            Value::U64(v) => Some(v),
            Value::I8(v) => v.try_into().ok(),
            Value::I16(v) => v.try_into().ok(),
            Value::I32(v) => v.try_into().ok(),
            Value::I64(v) => v.try_into().ok(),
            _ => None,
        }
    }

    /// The value of any number type.
    pub fn as_f64(&self) -> Option<f64> {
        match *self {
            Value::F32(v) => Some(v.into()),
            Value::F64(v) => Some(v),
            Value::I8(v) => Some(v.into()),
            Value::I16(v) => Some(v.into()),
            Value::I32(v) => Some(v.into()),
            Value::I64(v) => Some(v as f64),
            _ => self.as_u64().map(|v| v as f64),
        }
    }

    pub fn as_bool(&self) -> Option<bool> {
        if let Value::Bool(v) = self { Some(*v) } else { None }
    }

    pub fn as_str(&self) -> Option<&str> {
        if let Value::String(v) = self { Some(v) } else { None }
    }

    pub fn as_array(&self) -> Option<&[Value]> {
        if let Value::Array(v) = self { Some(v) } else { None }
    }
}

type Header = (u32, BTreeMap<String, Value>, Vec<TensorInfo>);

fn read_header(file: &[u8]) -> Result<Header> {
    let mut r = Reader { file, position: 0 };
    let magic = r.take(4, "the magic number")?;
    ensure!(magic == MAGIC, "expected a GGUF file (it begins with `GGUF`), found {magic:02x?}");
    let version = r.u32("the version")?;
    if version.swap_bytes() == 2 || version.swap_bytes() == 3 {
        bail!("expected little-endian GGUF, found a big-endian file");
    }
    ensure!(version == 2 || version == 3, "expected GGUF version 2 or 3, found {version}");
    let num_tensors = r.u64("the tensor count")?;
    let num_values = r.u64("the metadata count")?;

    let mut metadata = BTreeMap::new();
    for i in 0..num_values {
        let what = || format!("metadata {i} of {num_values}");
        let key = r.string("a key").with_context(what)?;
        let kind = r.u32("a value type").with_context(|| key.clone())?;
        let value = r.value(kind, 0).with_context(|| key.clone())?;
        ensure!(
            !metadata.contains_key(&key),
            "expected each metadata key once, found `{key}` twice"
        );
        metadata.insert(key, value);
    }
    let alignment = match metadata.get("general.alignment") {
        None => DEFAULT_ALIGNMENT,
        Some(value) => value.as_u64().filter(|a| a.is_power_of_two()).ok_or_else(|| {
            anyhow!("general.alignment: expected a power of two, found {value:?}")
        })?,
    };

    let mut tensors = Vec::new();
    for i in 0..num_tensors {
        let tensor = r.tensor().with_context(|| format!("tensor {i} of {num_tensors}"))?;
        ensure!(
            (tensor.offset as u64).is_multiple_of(alignment),
            "tensor {}: expected an offset that is a multiple of {alignment}, found {}",
            tensor.name,
            tensor.offset
        );
        tensors.push(tensor);
    }

    // The tensors' offsets count from the first aligned byte after the header.
    let data = (r.position as u64).next_multiple_of(alignment);
    let mut names = HashSet::new();
    for tensor in &mut tensors {
        let end = data.checked_add(tensor.offset as u64 + tensor.bytes as u64);
        ensure!(
            end.is_some_and(|end| end <= file.len() as u64),
            "tensor {}: expected {} bytes at {} + {data}, found the file's end at {}",
            tensor.name,
            tensor.bytes,
            tensor.offset,
            file.len()
        );
        tensor.offset += data as usize;
        ensure!(
            names.insert(&tensor.name),
            "expected each tensor once, found `{}` twice",
            tensor.name
        );
    }
    Ok((version, metadata, tensors))
}

/// Reads little-endian values and never past the end.
struct Reader<'a> {
    file: &'a [u8],
    position: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, n: u64, what: &str) -> Result<&'a [u8]> {
        let left = (self.file.len() - self.position) as u64;
        ensure!(
            n <= left,
            "expected {n} bytes of {what} at {}, found {left} before the file's end",
            self.position
        );
        let bytes = &self.file[self.position..self.position + n as usize];
        self.position += n as usize;
        Ok(bytes)
    }

    fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N]> {
        Ok(self.take(N as u64, what)?.try_into().expect("take returns as many bytes as asked"))
    }

    fn u32(&mut self, what: &str) -> Result<u32> {
        self.array(what).map(u32::from_le_bytes)
    }

    fn u64(&mut self, what: &str) -> Result<u64> {
        self.array(what).map(u64::from_le_bytes)
    }

    fn string(&mut self, what: &str) -> Result<String> {
        let length = self.u64(what)?;
        let at = self.position;
        let bytes = self.take(length, what)?;
        let text = std::str::from_utf8(bytes)
            .with_context(|| format!("expected UTF-8 in {what} at {at}"))?;
        Ok(text.to_string())
    }

    fn value(&mut self, kind: u32, depth: usize) -> Result<Value> {
        let what = "a value";
        Ok(match kind {
            0 => Value::U8(u8::from_le_bytes(self.array(what)?)),
            1 => Value::I8(i8::from_le_bytes(self.array(what)?)),
            2 => Value::U16(u16::from_le_bytes(self.array(what)?)),
            3 => Value::I16(i16::from_le_bytes(self.array(what)?)),
            4 => Value::U32(u32::from_le_bytes(self.array(what)?)),
            5 => Value::I32(i32::from_le_bytes(self.array(what)?)),
            6 => Value::F32(f32::from_le_bytes(self.array(what)?)),
            7 => match self.array(what)? {
                [0] => Value::Bool(false),
                [1] => Value::Bool(true),
                [other] => bail!("expected a bool (0 or 1), found {other}"),
            },
            8 => Value::String(self.string(what)?),
            9 => {
                ensure!(
                    depth < MAX_ARRAY_DEPTH,
                    "expected arrays nested at most {MAX_ARRAY_DEPTH} deep"
                );
                let kind = self.u32("an array's type")?;
                let length = self.u64("an array's length")?;
                ensure!(
                    length <= MAX_ARRAY_LENGTH,
                    "expected an array of at most {MAX_ARRAY_LENGTH} values, found {length}"
                );
                // No capacity is reserved: a false length ends at the file's end, not in an allocation.
                let mut values = Vec::new();
                for _ in 0..length {
                    values.push(self.value(kind, depth + 1)?);
                }
                values.shrink_to_fit();
                Value::Array(values)
            }
            10 => Value::U64(u64::from_le_bytes(self.array(what)?)),
            11 => Value::I64(i64::from_le_bytes(self.array(what)?)),
            12 => Value::F64(f64::from_le_bytes(self.array(what)?)),
            other => bail!("expected a value type from 0 to 12, found {other}"),
        })
    }

    /// One entry of the tensor list; its `offset` still counts from the beginning of the data.
    fn tensor(&mut self) -> Result<TensorInfo> {
        let name = self.string("a tensor's name")?;
        let num_dimensions = self.u32("a tensor's dimensions")?;
        ensure!(
            num_dimensions <= MAX_DIMENSIONS,
            "{name}: expected at most {MAX_DIMENSIONS} dimensions, found {num_dimensions}"
        );
        let mut shape = Vec::new();
        for _ in 0..num_dimensions {
            shape.push(self.u64("a tensor's shape")? as usize);
        }
        // ggml counts from the fastest dimension; rows are whole blocks.
        let row_length = shape.first().copied().unwrap_or(1);
        shape.reverse();
        let number = self.u32("a tensor's type")?;
        let offset = self.u64("a tensor's offset")? as usize;
        let dtype = GgmlType::from_number(number).ok_or_else(|| {
            let known: Vec<_> = GgmlType::ALL.map(GgmlType::name).into();
            anyhow!(
                "{name}: expected one of the types {}, found {}\n  help: requantize the file to one of these, \
                 such as Q8_0",
                known.join(" "),
                type_name(number)
            )
        })?;
        ensure!(
            row_length.is_multiple_of(dtype.block_length()),
            "{name}: expected rows of whole {} blocks ({} elements), found rows of {row_length}",
            dtype.name(),
            dtype.block_length()
        );
        let bytes = shape
            .iter()
            .try_fold(1usize, |n, &d| n.checked_mul(d))
            .and_then(|n| (n / dtype.block_length()).checked_mul(dtype.block_bytes()))
            .filter(|&bytes| bytes <= self.file.len() && offset <= self.file.len())
            .ok_or_else(|| {
                anyhow!("{name}: expected a tensor smaller than its file, found the shape {shape:?} at {offset}")
            })?;
        Ok(TensorInfo { name, shape, dtype, offset, bytes })
    }
}

/// A name for the types of `ggml.h` that are not read here.
fn type_name(number: u32) -> String {
    let name = match number {
        9 => "Q8_1",
        10 => "Q2_K",
        11 => "Q3_K",
        15 => "Q8_K",
        16..=23 | 29 => "an IQ type",
        24..=27 => "an integer type",
        28 => "F64",
        34 | 35 => "a ternary type",
        39 => "MXFP4",
        _ => "an unknown type",
    };
    format!("{name} ({number})")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn put_string(file: &mut Vec<u8>, text: &str) {
        file.extend((text.len() as u64).to_le_bytes());
        file.extend(text.as_bytes());
    }

    /// A file with one value of each type and two tensors, `a` `[2, 3]` F32 and `b` `[1, 32]` Q8_0.
    fn sample(version: u32) -> Vec<u8> {
        let mut f = b"GGUF".to_vec();
        f.extend(version.to_le_bytes());
        f.extend(2u64.to_le_bytes());
        let values: Vec<(&str, u32, Vec<u8>)> = vec![
            ("u8", 0, vec![200]),
            ("i8", 1, vec![0xff]),
            ("u16", 2, 40_000u16.to_le_bytes().into()),
            ("i16", 3, (-2i16).to_le_bytes().into()),
            ("u32", 4, 7u32.to_le_bytes().into()),
            ("i32", 5, (-7i32).to_le_bytes().into()),
            ("f32", 6, 1.5f32.to_le_bytes().into()),
            ("bool", 7, vec![1]),
            ("u64", 10, (1u64 << 40).to_le_bytes().into()),
            ("i64", 11, (-1i64).to_le_bytes().into()),
            ("f64", 12, 0.1f64.to_le_bytes().into()),
        ];
        f.extend((values.len() as u64 + 2).to_le_bytes());
        for (key, kind, bytes) in values {
            put_string(&mut f, key);
            f.extend(kind.to_le_bytes());
            f.extend(bytes);
        }
        put_string(&mut f, "string");
        f.extend(8u32.to_le_bytes());
        put_string(&mut f, "Ġthe");
        put_string(&mut f, "array");
        f.extend(9u32.to_le_bytes());
        f.extend(8u32.to_le_bytes());
        f.extend(2u64.to_le_bytes());
        put_string(&mut f, "x");
        put_string(&mut f, "y");
        for (name, ne, kind, offset) in [("a", [3u64, 2], 0u32, 0u64), ("b", [32, 1], 8, 32)] {
            put_string(&mut f, name);
            f.extend(2u32.to_le_bytes());
            ne.iter().for_each(|n| f.extend(n.to_le_bytes()));
            f.extend(kind.to_le_bytes());
            f.extend(offset.to_le_bytes());
        }
        f.resize(f.len().next_multiple_of(32), 0);
        (0..6).for_each(|i| f.extend((i as f32).to_le_bytes()));
        f.resize(f.len() + 8, 0); // to the second tensor's offset, 32
        f.extend(half::f16::from_f32(0.5).to_le_bytes());
        f.extend(0..32u8);
        f
    }

    fn open(bytes: &[u8]) -> Result<Gguf> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.gguf");
        std::fs::write(&path, bytes).unwrap();
        Gguf::open(&path)
    }

    #[test]
    fn reads_values_and_tensors_of_both_versions() {
        for version in [2, 3] {
            let file = open(&sample(version)).unwrap();
            assert_eq!(file.version, version);
            assert_eq!(file.metadata.len(), 13);
            assert_eq!(file.get("i8").unwrap(), &Value::I8(-1));
            assert_eq!(file.get_u64("u64").unwrap(), 1 << 40);
            assert_eq!(file.get_f64("f64").unwrap(), 0.1);
            assert_eq!(file.get("bool").unwrap().as_bool(), Some(true));
            assert_eq!(file.get_str("string").unwrap(), "Ġthe");
            assert_eq!(file.get_array("array").unwrap()[1].as_str(), Some("y"));
            let a = file.tensor("a").unwrap();
            assert_eq!(a.shape, [2, 3]);
            assert_eq!(file.tensor_f32(a).unwrap(), [0., 1., 2., 3., 4., 5.]);
            let b = file.tensor("b").unwrap();
            let expected: Vec<_> = (0..32).map(|i| i as f32 / 2.0).collect();
            assert_eq!(file.tensor_f32(b).unwrap(), expected);
        }
    }

    #[test]
    fn errors_name_the_file_and_what_was_expected() {
        let check = |bytes: &[u8], expected: &str| {
            let error = format!("{:#}", open(bytes).err().expect("an error"));
            assert!(error.contains("m.gguf") && error.contains(expected), "{error}");
        };
        let good = sample(3);
        check(b"PK\x03\x04", "begins with `GGUF`");
        check(&good[..good.len() - 1], "tensor b: expected 34 bytes");
        check(&good[..60], "before the file's end");
        check(&sample(1), "version 2 or 3, found 1");
        check(&sample(3u32.swap_bytes()), "big-endian");
        let mut huge = good.clone();
        huge[8..16].fill(0xff); // the tensor count
        check(&huge, "of 18446744073709551615: expected");
        let error = open(&good).unwrap().get_u64("string").unwrap_err().to_string();
        assert!(error.ends_with("string: expected a non-negative integer, found String(\"Ġthe\")"));
    }

    proptest! {
        /// Cut anywhere, or any bytes overwritten: an answer or an error, never a panic.
        #[test]
        fn corrupt_files_never_panic(cut in 0usize..1000, at in 0usize..1000, junk: [u8; 8]) {
            let mut file = sample(3);
            let at = at % file.len();
            for (byte, junk) in file[at..].iter_mut().zip(junk) {
                *byte = junk;
            }
            file.truncate(file.len() - cut.min(file.len()) % 64);
            if let Ok((_, _, tensors)) = read_header(&file) {
                for t in tensors {
                    prop_assert!(t.offset + t.bytes <= file.len());
                }
            }
        }
    }
}
