//! Reads the mapping of names to tensors that a pickle of `torch.save` describes, without executing it.
//!
//! A pickle is a program: Python's reader calls whatever function it names. The machine here knows only the operations and
//! the few functions that a saved state dict needs, and its values are inert; everything else is refused by name. Opcodes
//! from CPython's `Lib/pickletools.py`.

use anyhow::{Context, Result, bail, ensure};
use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use tch::Kind;

/// Bounds the memory that a pickle can ask for, about a hundred bytes for each of its own. A state dict of a thousand
/// tensors takes 200 KB.
const MAX_PICKLE_BYTES: usize = 16 << 20;

/// A tensor as `torch._utils._rebuild_tensor_v2` is told of it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct View {
    pub storage: Storage,
    pub offset: i64,
    pub size: Vec<i64>,
    pub stride: Vec<i64>,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) struct Storage {
    pub kind: Kind,
    pub key: String,
    pub num_elements: i64,
}

impl View {
    /// The elements of the storage from the view's first to its last; `None` where they do not all exist.
    pub fn elements(&self) -> Option<Range<usize>> {
        let fits = self.size.len() == self.stride.len()
            && self.size.iter().chain(&self.stride).all(|&n| n >= 0)
            && self.size.iter().try_fold(1i64, |n, &size| n.checked_mul(size)).is_some();
        let begin = usize::try_from(self.offset).ok()?;
        if !fits || self.offset > self.storage.num_elements {
            return None;
        }
        if self.size.contains(&0) {
            return Some(begin..begin);
        }
        let mut end = self.offset.checked_add(1)?;
        for (&size, &stride) in self.size.iter().zip(&self.stride) {
            end = end.checked_add((size - 1).checked_mul(stride)?)?;
        }
        (end <= self.storage.num_elements).then_some(begin..end as usize)
    }
}

/// Runs the pickle of a state dict.
///
/// # Errors
///
/// When it asks for anything but tensors, or is no mapping of names to them.
pub(super) fn unpickle(pickle: &[u8]) -> Result<BTreeMap<String, View>> {
    ensure!(
        pickle.len() <= MAX_PICKLE_BYTES,
        "data.pkl: expected at most {MAX_PICKLE_BYTES} bytes, found {}",
        pickle.len()
    );
    let mut machine = Machine { pickle, ..Machine::default() };
    loop {
        let at = machine.position;
        // A refusal is told as it is, everything else with its place.
        match machine.step() {
            Ok(false) => {}
            Ok(true) => break,
            Err(error) if error.is::<Refused>() => return Err(error),
            Err(error) => return Err(error.context(format!("data.pkl: byte {at}"))),
        }
    }
    let top = machine.pop().context("data.pkl: at its end")?;
    let Value::Dict(pairs) = &machine.values[top] else {
        bail!("data.pkl: expected a mapping of names to tensors, found {}", machine.describe(top));
    };
    let mut tensors = BTreeMap::new();
    for &(key, value) in pairs {
        let Value::Text(name) = &machine.values[key] else {
            bail!("data.pkl: expected names of tensors, found {}", machine.describe(key));
        };
        let Value::Tensor(view) = &machine.values[value] else {
            bail!(
                "data.pkl: {name}: expected a tensor, found {}\n  help: save the model's state dict alone",
                machine.describe(value)
            );
        };
        tensors.insert(name.clone(), view.clone());
    }
    Ok(tensors)
}

/// An index into [`Machine::values`]. Values refer to each other by index, so that neither nesting nor cycles in a pickle
/// lead to recursion here, not even in a drop.
type Id = usize;

enum Value {
    None,
    Bool,
    Int(i64),
    Float,
    Bytes,
    Text(String),
    Tuple(Vec<Id>),
    List(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    Global(Global),
    Storage(Storage),
    Tensor(View),
}

/// Everything that a pickle may name.
#[derive(Clone, Copy)]
enum Global {
    OrderedDict,
    RebuildTensor,
    RebuildParameter,
    StorageOf(Kind),
}

impl Global {
    fn find(module: &str, name: &str) -> Option<Global> {
        Some(match (module, name) {
            ("collections", "OrderedDict") => Global::OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2") => Global::RebuildTensor,
            ("torch._utils", "_rebuild_parameter") => Global::RebuildParameter,
            ("torch", storage) => Global::StorageOf(match storage {
                "FloatStorage" => Kind::Float,
                "HalfStorage" => Kind::Half,
                "BFloat16Storage" => Kind::BFloat16,
                "DoubleStorage" => Kind::Double,
                "LongStorage" => Kind::Int64,
                "IntStorage" => Kind::Int,
                "ShortStorage" => Kind::Int16,
                "CharStorage" => Kind::Int8,
                "ByteStorage" => Kind::Uint8,
                "BoolStorage" => Kind::Bool,
                _ => return None,
            }),
            _ => return None,
        })
    }
}

/// A pickle asked for something that is not needed to read tensors.
#[derive(Debug)]
struct Refused(String);

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "refused: the pickle asks for `{}`; only tensors are read", self.0)
    }
}

impl std::error::Error for Refused {}

/// A stack machine: every step consumes at least a byte of the pickle and adds at most one value, so it ends.
#[derive(Default)]
struct Machine<'a> {
    pickle: &'a [u8],
    position: usize,
    values: Vec<Value>,
    stack: Vec<Id>,
    /// Heights of the stack at which `MARK` was met.
    marks: Vec<usize>,
    memo: HashMap<usize, Id>,
}

impl<'a> Machine<'a> {
    /// Executes one operation; true at the end.
    fn step(&mut self) -> Result<bool> {
        match self.u8()? {
            // PROTO, FRAME
            0x80 => {
                let protocol = self.u8()?;
                ensure!((2..=5).contains(&protocol), "expected protocol 2 to 5, found {protocol}");
            }
            0x95 => {
                self.take(8)?;
            }
            // MARK, POP, POP_MARK
            b'(' => self.marks.push(self.stack.len()),
            b'0' => {
                self.pop()?;
            }
            b'1' => {
                self.pop_mark()?;
            }
            // NONE, NEWTRUE, NEWFALSE
            b'N' => self.push(Value::None),
            0x88 | 0x89 => self.push(Value::Bool),
            // BININT, BININT1, BININT2, LONG1
            b'J' => {
                let n = i32::from_le_bytes(self.array()?);
                self.push(Value::Int(n.into()));
            }
            b'K' => {
                let n = self.u8()?;
                self.push(Value::Int(n.into()));
            }
            b'M' => {
                let n = u16::from_le_bytes(self.array()?);
                self.push(Value::Int(n.into()));
            }
            0x8a => {
                let length = self.u8()?.into();
                let n = long(self.take(length)?)?;
                self.push(Value::Int(n));
            }
            // BINFLOAT
            b'G' => {
                self.take(8)?;
                self.push(Value::Float);
            }
            // BINUNICODE, SHORT_BINUNICODE, BINUNICODE8
            b'X' => self.text(4)?,
            0x8c => self.text(1)?,
            0x8d => self.text(8)?,
            // BINSTRING and SHORT_BINSTRING, the text of Python 2
            b'T' => self.text(4)?,
            b'U' => self.text(1)?,
            // BINBYTES, SHORT_BINBYTES, BINBYTES8
            b'B' => self.bytes(4)?,
            b'C' => self.bytes(1)?,
            0x8e => self.bytes(8)?,
            // EMPTY_TUPLE, TUPLE1, TUPLE2, TUPLE3, TUPLE
            b')' => self.push(Value::Tuple(Vec::new())),
            count @ 0x85..=0x87 => {
                let mut items = Vec::new();
                for _ in 0x85..=count {
                    items.push(self.pop()?);
                }
                items.reverse();
                self.push(Value::Tuple(items));
            }
            b't' => {
                let items = self.pop_mark()?;
                self.push(Value::Tuple(items));
            }
            // EMPTY_LIST, APPEND, APPENDS
            b']' => self.push(Value::List(Vec::new())),
            b'a' => {
                let item = self.pop()?;
                self.append(vec![item])?;
            }
            b'e' => {
                let items = self.pop_mark()?;
                self.append(items)?;
            }
            // EMPTY_DICT, SETITEM, SETITEMS
            b'}' => self.push(Value::Dict(Vec::new())),
            b's' => {
                let (value, key) = (self.pop()?, self.pop()?);
                self.set_items(vec![key, value])?;
            }
            b'u' => {
                let items = self.pop_mark()?;
                self.set_items(items)?;
            }
            // BINPUT, LONG_BINPUT, MEMOIZE
            b'q' => {
                let key = self.u8()?.into();
                self.memoize(key)?;
            }
            b'r' => {
                let key = u32::from_le_bytes(self.array()?) as usize;
                self.memoize(key)?;
            }
            0x94 => self.memoize(self.memo.len())?,
            // BINGET, LONG_BINGET
            b'h' => {
                let key = self.u8()?.into();
                self.recall(key)?;
            }
            b'j' => {
                let key = u32::from_le_bytes(self.array()?) as usize;
                self.recall(key)?;
            }
            // GLOBAL, STACK_GLOBAL
            b'c' => {
                let (module, name) = (self.line()?, self.line()?);
                self.global(&module, &name)?;
            }
            0x93 => {
                let (name, module) = (self.pop()?, self.pop()?);
                let (module, name) = (self.as_text(module)?.clone(), self.as_text(name)?.clone());
                self.global(&module, &name)?;
            }
            // BINPERSID, REDUCE, BUILD
            b'Q' => self.storage()?,
            b'R' => self.reduce()?,
            b'b' => {
                // Attributes of the mapping: torch keeps the versions of modules there.
                self.pop()?;
                let target = self.top()?;
                let mapping = matches!(self.values[target], Value::Dict(_));
                ensure!(
                    mapping,
                    "expected attributes of a mapping, found {}",
                    self.describe(target)
                );
            }
            // STOP
            b'.' => return Ok(true),
            other => bail!("expected an operation of a state dict, found 0x{other:02x}"),
        }
        Ok(false)
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8]> {
        let left = self.pickle.len() - self.position;
        ensure!(length <= left, "expected {length} more bytes, found {left}");
        let bytes = &self.pickle[self.position..self.position + length];
        self.position += length;
        Ok(bytes)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        Ok(self.take(N)?.try_into().expect("take returns as many bytes as asked"))
    }

    fn u8(&mut self) -> Result<u8> {
        Ok(self.array::<1>()?[0])
    }

    /// Bytes after their length, itself a little-endian number of `width` bytes.
    fn counted(&mut self, width: usize) -> Result<&'a [u8]> {
        let mut length = [0; 8];
        length[..width].copy_from_slice(self.take(width)?);
        self.take(u64::from_le_bytes(length) as usize)
    }

    fn text(&mut self, width: usize) -> Result<()> {
        let text = std::str::from_utf8(self.counted(width)?).context("expected UTF-8")?;
        self.push(Value::Text(text.to_string()));
        Ok(())
    }

    fn bytes(&mut self, width: usize) -> Result<()> {
        self.counted(width)?;
        self.push(Value::Bytes);
        Ok(())
    }

    fn line(&mut self) -> Result<String> {
        let rest = &self.pickle[self.position..];
        let length =
            rest.iter().position(|&byte| byte == b'\n').context("expected a line's end")?;
        let line = self.take(length + 1)?;
        Ok(String::from_utf8_lossy(&line[..length]).into_owned())
    }

    fn push(&mut self, value: Value) {
        self.stack.push(self.values.len());
        self.values.push(value);
    }

    /// What is below the last mark belongs to the operation that will use the mark.
    fn pop(&mut self) -> Result<Id> {
        let id = self.top()?;
        self.stack.pop();
        Ok(id)
    }

    fn top(&self) -> Result<Id> {
        let floor = self.marks.last().copied().unwrap_or(0);
        self.stack[floor..].last().copied().context("expected a value on the stack, found none")
    }

    fn pop_mark(&mut self) -> Result<Vec<Id>> {
        let mark = self.marks.pop().context("expected a mark on the stack, found none")?;
        Ok(self.stack.split_off(mark))
    }

    fn append(&mut self, items: Vec<Id>) -> Result<()> {
        let target = self.top()?;
        match &mut self.values[target] {
            Value::List(list) => list.extend(items),
            _ => bail!("expected a list to append to, found {}", self.describe(target)),
        }
        Ok(())
    }

    fn set_items(&mut self, items: Vec<Id>) -> Result<()> {
        ensure!(items.len().is_multiple_of(2), "expected a value for each key, found a key more");
        let target = self.top()?;
        match &mut self.values[target] {
            Value::Dict(pairs) => {
                pairs.extend(items.chunks_exact(2).map(|pair| (pair[0], pair[1])))
            }
            _ => bail!("expected a mapping to fill, found {}", self.describe(target)),
        }
        Ok(())
    }

    fn memoize(&mut self, key: usize) -> Result<()> {
        let id = self.top()?;
        self.memo.insert(key, id);
        Ok(())
    }

    fn recall(&mut self, key: usize) -> Result<()> {
        let id = self
            .memo
            .get(&key)
            .with_context(|| format!("expected a value under {key}, found none"))?;
        self.stack.push(*id);
        Ok(())
    }

    fn global(&mut self, module: &str, name: &str) -> Result<()> {
        let global =
            Global::find(module, name).ok_or_else(|| Refused(format!("{module}.{name}")))?;
        self.push(Value::Global(global));
        Ok(())
    }

    /// A persistent id stands for a storage: `("storage", torch.FloatStorage, key, device, number of elements)`.
    fn storage(&mut self) -> Result<()> {
        let id = self.pop()?;
        let items = self.as_tuple(id)?;
        let [tag, class, key, _device, num_elements] = items[..] else {
            bail!("expected a storage of 5 items, found {}", items.len());
        };
        let tag = self.as_text(tag)?;
        ensure!(tag == "storage", "expected a `storage`, found a `{tag}`");
        let Value::Global(Global::StorageOf(kind)) = self.values[class] else {
            bail!("expected a storage's class, found {}", self.describe(class));
        };
        let key = self.as_text(key)?.clone();
        let num_elements = self.as_int(num_elements)?;
        self.push(Value::Storage(Storage { kind, key, num_elements }));
        Ok(())
    }

    /// "Calls" a global: makes the inert value that stands for what the call would return.
    fn reduce(&mut self) -> Result<()> {
        let (arguments, function) = (self.pop()?, self.pop()?);
        let Value::Global(function) = self.values[function] else {
            bail!("expected a function, found {}", self.describe(function));
        };
        let arguments = self.as_tuple(arguments)?;
        match (function, arguments) {
            (Global::OrderedDict, []) => self.push(Value::Dict(Vec::new())),
            (Global::RebuildTensor, &[storage, offset, size, stride, ..]) => {
                let Value::Storage(storage) = &self.values[storage] else {
                    bail!("expected a storage, found {}", self.describe(storage));
                };
                let (storage, offset) = (storage.clone(), self.as_int(offset)?);
                let (size, stride) = (self.as_ints(size)?, self.as_ints(stride)?);
                self.push(Value::Tensor(View { storage, offset, size, stride }));
            }
            // A parameter is its tensor.
            (Global::RebuildParameter, &[tensor, ..]) => self.stack.push(tensor),
            (_, arguments) => {
                bail!("expected the arguments of a tensor, found {}", arguments.len())
            }
        }
        Ok(())
    }

    fn as_text(&self, id: Id) -> Result<&String> {
        match &self.values[id] {
            Value::Text(text) => Ok(text),
            _ => bail!("expected a text, found {}", self.describe(id)),
        }
    }

    fn as_int(&self, id: Id) -> Result<i64> {
        match self.values[id] {
            Value::Int(n) => Ok(n),
            _ => bail!("expected a whole number, found {}", self.describe(id)),
        }
    }

    fn as_tuple(&self, id: Id) -> Result<&[Id]> {
        match &self.values[id] {
            Value::Tuple(items) => Ok(items),
            _ => bail!("expected a tuple, found {}", self.describe(id)),
        }
    }

    fn as_ints(&self, id: Id) -> Result<Vec<i64>> {
        self.as_tuple(id)?.iter().map(|&item| self.as_int(item)).collect()
    }

    fn describe(&self, id: Id) -> &'static str {
        match &self.values[id] {
            Value::None => "nothing",
            Value::Bool => "a boolean",
            Value::Int(_) | Value::Float => "a number",
            Value::Bytes => "bytes",
            Value::Text(_) => "a text",
            Value::Tuple(_) => "a tuple",
            Value::List(_) => "a list",
            Value::Dict(_) => "a mapping",
            Value::Global(_) => "a function or class",
            Value::Storage(_) => "a storage",
            Value::Tensor(_) => "a tensor",
        }
    }
}

/// A little-endian number in two's complement, of any length that fits.
fn long(bytes: &[u8]) -> Result<i64> {
    ensure!(bytes.len() <= 8, "expected a number of at most 8 bytes, found {}", bytes.len());
    let negative = bytes.last().is_some_and(|&byte| byte & 0x80 != 0);
    let mut wide = [if negative { 0xff } else { 0 }; 8];
    wide[..bytes.len()].copy_from_slice(bytes);
    Ok(i64::from_le_bytes(wide))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(pickle: &[u8]) -> String {
        format!("{:#}", unpickle(pickle).expect_err("an error"))
    }

    /// `{"w": <value>}`.
    fn mapping(value: &[u8]) -> Vec<u8> {
        [b"\x80\x02}X\x01\0\0\0w", value, b"s."].concat()
    }

    #[test]
    fn whatever_is_no_tensor_is_refused_by_name() {
        let refused =
            |name: &str| format!("refused: the pickle asks for `{name}`; only tensors are read");
        let check = |value: &[u8], name: &str| {
            assert_eq!(error(&mapping(value)), refused(name));
        };
        check(b"cos\nsystem\n(U\x06exit 1tR", "os.system");
        check(b"\x8c\x08builtins\x8c\x04eval\x93(U\x011tR", "builtins.eval");
        check(b"ctorch\nload\n", "torch.load");
        check(b"ctorch._utils\n_rebuild_tensor_v3\n", "torch._utils._rebuild_tensor_v3");
    }

    #[test]
    fn pickles_that_are_no_state_dict_say_why() {
        let check = |pickle: &[u8], expected: &str| {
            let error = error(pickle);
            assert!(error.contains(expected), "{error}");
        };
        check(
            &mapping(b"K\x05"),
            "w: expected a tensor, found a number\n  help: save the model's state dict alone",
        );
        check(&mapping(b"}"), "w: expected a tensor, found a mapping");
        check(b"\x80\x02].", "expected a mapping of names to tensors, found a list");
        check(b"\x80\x02}K\x01Ns.", "expected names of tensors, found a number");
        check(b"\x80\x04}", "data.pkl: byte 3: expected 1 more bytes, found 0");
        check(b"\x80\x01}.", "byte 0: expected protocol 2 to 5, found 1");
        check(b"\x80\x02(.", "data.pkl: at its end: expected a value on the stack, found none");
        check(b"\x80\x02(s.", "expected a value on the stack, found none");
        check(b"\x80\x02h\x07.", "expected a value under 7, found none");
        check(b"\x80\x02i.", "byte 2: expected an operation of a state dict, found 0x69");
        check(b"\x80\x02X\xff\xff\xff\xff.", "expected 4294967295 more bytes, found 1");
        check(b"\x80\x02K\x01NR.", "expected a function, found a number");
        check(&vec![b'N'; MAX_PICKLE_BYTES + 1], "expected at most 16777216 bytes, found 16777217");
        // Nested as deep as a pickle can be: values are not walked, so nothing overflows.
        check(&[&b"\x80\x02)"[..], &vec![0x85; 1 << 20], b"."].concat(), "found a tuple");
    }

    #[test]
    fn numbers_of_any_length_are_signed() {
        assert_eq!(long(&[]).unwrap(), 0);
        assert_eq!(long(&[0xff]).unwrap(), -1);
        assert_eq!(long(&[0xff, 0]).unwrap(), 255);
        assert_eq!(long(&i64::MIN.to_le_bytes()).unwrap(), i64::MIN);
        assert!(long(&[1; 9]).is_err());
    }

    proptest::proptest! {
        #![proptest_config(proptest::prelude::ProptestConfig::with_cases(2000))]

        /// Any program at all.
        #[test]
        fn any_pickle_ends(pickle in proptest::collection::vec(
            proptest::sample::select(&b"\x80\x02(0N\x88KXU)\x85\x86\x87t]ae}suqh\x94cQRb.\x01\x00torch\n"[..]), 0..60,
        )) {
            let _ = unpickle(&pickle);
        }
    }
}
