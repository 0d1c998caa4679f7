//! A checkpoint directory: safetensors files, mapped, with every error naming file and key.
//!
//! Tensors are read through the page cache straight from the mapping and converted to the engine's element type in
//! pieces, so loading needs no second copy of the model in host memory.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use memmap2::Mmap;
use safetensors::{Dtype as Stored, SafeTensors};

use crate::core::Dtype;

/// Most shard files of a checkpoint.
const SHARDS_MAX: usize = 1024;

/// What is wrong with a checkpoint.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// Neither `model.safetensors` nor `model.safetensors.index.json`.
    #[error("{dir} holds neither model.safetensors nor model.safetensors.index.json")]
    Missing {
        /// Directory.
        dir: PathBuf,
    },
    /// A file cannot be read or parsed.
    #[error("{path}: {problem}")]
    File {
        /// File.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// A tensor is not there.
    #[error("{dir}: no tensor `{key}`")]
    NoTensor {
        /// Directory.
        dir: PathBuf,
        /// Tensor.
        key: String,
    },
    /// A tensor has another shape than `config.json` says.
    #[error("{path}: tensor `{key}` has shape {found:?}, config.json says {wanted:?}")]
    Shape {
        /// File.
        path: PathBuf,
        /// Tensor.
        key: String,
        /// Shape in the file.
        found: Vec<usize>,
        /// Shape the configuration asks for.
        wanted: Vec<usize>,
    },
    /// A tensor has an element type that cannot be converted.
    #[error("{path}: tensor `{key}` has element type {found:?}; F32, F16 and BF16 are supported")]
    ElementType {
        /// File.
        path: PathBuf,
        /// Tensor.
        key: String,
        /// Type in the file.
        found: Stored,
    },
}

struct Location {
    shard: usize,
    dtype: Stored,
    shape: Vec<usize>,
    /// Byte range in the shard.
    range: std::ops::Range<usize>,
}

/// An opened checkpoint.
pub struct Checkpoint {
    dir: PathBuf,
    shards: Vec<(PathBuf, Mmap)>,
    tensors: BTreeMap<String, Location>,
}

impl Checkpoint {
    /// Maps every shard of `dir` and reads their headers.
    ///
    /// # Errors
    /// [`CheckpointError`].
    pub fn open(dir: &Path) -> Result<Self, CheckpointError> {
        let mut checkpoint = Self { dir: dir.to_owned(), shards: Vec::new(), tensors: BTreeMap::new() };
        for path in shard_paths(dir)? {
            checkpoint.add_shard(path)?;
        }
        Ok(checkpoint)
    }

    fn add_shard(&mut self, path: PathBuf) -> Result<(), CheckpointError> {
        let fail = |problem: String| CheckpointError::File { path: path.clone(), problem };
        let file = File::open(&path).map_err(|e| fail(format!("cannot be opened: {e}")))?;
        // SAFETY: the mapping is read-only and private to this process; that nobody truncates a checkpoint while it is being
        // loaded is the usual premise of mapping one.
        let map = unsafe { Mmap::map(&file) }.map_err(|e| fail(format!("cannot be mapped: {e}")))?;
        let header = SafeTensors::deserialize(&map).map_err(|e| fail(format!("is not safetensors: {e}")))?;
        let shard = self.shards.len();
        for (key, view) in header.tensors() {
            let start = view.data().as_ptr() as usize - map.as_ptr() as usize;
            let location = Location {
                shard,
                dtype: view.dtype(),
                shape: view.shape().to_vec(),
                range: start..start + view.data().len(),
            };
            self.tensors.insert(key, location);
        }
        self.shards.push((path, map));
        Ok(())
    }

    /// True if the tensor is there.
    pub fn contains(&self, key: &str) -> bool {
        self.tensors.contains_key(key)
    }

    /// Hands the elements of tensor `key`, converted to `dtype`, to `sink` in pieces: byte offset in the converted
    /// tensor, bytes.
    ///
    /// # Errors
    /// [`CheckpointError`] for a tensor that is missing, of another shape or of an unknown type; errors of `sink`.
    pub fn read<E: From<CheckpointError>>(
        &self,
        key: &str,
        shape: &[usize],
        dtype: Dtype,
        mut sink: impl FnMut(u64, &[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let no_tensor = || CheckpointError::NoTensor { dir: self.dir.clone(), key: key.to_owned() };
        let tensor = self.tensors.get(key).ok_or_else(no_tensor)?;
        let (path, map) = &self.shards[tensor.shard];
        if tensor.shape != shape {
            return Err(CheckpointError::Shape {
                path: path.clone(),
                key: key.to_owned(),
                found: tensor.shape.clone(),
                wanted: shape.to_vec(),
            }
            .into());
        }
        let bytes = &map[tensor.range.clone()];
        let stored = match tensor.dtype {
            Stored::F32 => Dtype::Float32,
            Stored::F16 => Dtype::Float16,
            Stored::BF16 => Dtype::BFloat16,
            found => {
                return Err(CheckpointError::ElementType { path: path.clone(), key: key.to_owned(), found }.into());
            }
        };
        if stored == dtype {
            return sink(0, bytes);
        }
        /// Elements converted at a time: small enough for the cache, large enough that a copy's fixed cost vanishes.
        const PIECE_ELEMENTS: usize = 1 << 20;
        let mut piece = Vec::with_capacity(PIECE_ELEMENTS * dtype.bytes());
        let mut offset = 0u64;
        for source in bytes.chunks(PIECE_ELEMENTS * stored.bytes()) {
            piece.clear();
            convert(source, stored, dtype, &mut piece);
            sink(offset, &piece)?;
            offset += piece.len() as u64;
        }
        Ok(())
    }
}

fn shard_paths(dir: &Path) -> Result<Vec<PathBuf>, CheckpointError> {
    let single = dir.join("model.safetensors");
    if single.exists() {
        return Ok(vec![single]);
    }
    let index = dir.join("model.safetensors.index.json");
    if !index.exists() {
        return Err(CheckpointError::Missing { dir: dir.to_owned() });
    }
    let fail = |problem: &str| CheckpointError::File { path: index.clone(), problem: problem.to_owned() };
    let text = std::fs::read_to_string(&index).map_err(|e| fail(&format!("cannot be read: {e}")))?;
    let json: serde_json::Value = serde_json::from_str(&text).map_err(|e| fail(&format!("is not JSON: {e}")))?;
    let map = json.get("weight_map").and_then(|m| m.as_object()).ok_or_else(|| fail("has no `weight_map`"))?;
    let mut names: Vec<&str> = map.values().filter_map(serde_json::Value::as_str).collect();
    names.sort_unstable();
    names.dedup();
    // A name with a separator could lead out of the checkpoint.
    if names.is_empty() || names.len() > SHARDS_MAX || names.iter().any(|n| n.contains(['/', '\\'])) {
        return Err(fail("`weight_map` does not list plain file names"));
    }
    Ok(names.into_iter().map(|name| dir.join(name)).collect())
}

/// Decodes one element, little-endian.
fn decode(bytes: &[u8], dtype: Dtype) -> f32 {
    match dtype {
        Dtype::Float32 => f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]),
        Dtype::Float16 => f16::from_le_bytes([bytes[0], bytes[1]]).to_f32(),
        Dtype::BFloat16 => bf16::from_le_bytes([bytes[0], bytes[1]]).to_f32(),
    }
}

/// Appends `value` as `dtype`, rounded to nearest even.
pub fn encode(value: f32, dtype: Dtype, out: &mut Vec<u8>) {
    match dtype {
        Dtype::Float32 => out.extend_from_slice(&value.to_le_bytes()),
        Dtype::Float16 => out.extend_from_slice(&f16::from_f32(value).to_le_bytes()),
        Dtype::BFloat16 => out.extend_from_slice(&bf16::from_f32(value).to_le_bytes()),
    }
}

fn convert(source: &[u8], from: Dtype, to: Dtype, out: &mut Vec<u8>) {
    for element in source.chunks_exact(from.bytes()) {
        encode(decode(element, from), to, out);
    }
}

/// Decodes a whole row of elements into `out`.
pub fn decode_row(bytes: &[u8], dtype: Dtype, out: &mut Vec<f32>) {
    out.clear();
    out.extend(bytes.chunks_exact(dtype.bytes()).map(|element| decode(element, dtype)));
}

#[cfg(test)]
mod tests {
    use super::*;
    use safetensors::tensor::TensorView;

    fn checkpoint(dir: &Path) -> Checkpoint {
        let f32s: Vec<u8> = [1.0f32, -2.5, 3.25, 0.1].iter().flat_map(|v| v.to_le_bytes()).collect();
        let i8s = [1u8, 2];
        let tensors = [
            ("w", TensorView::new(Stored::F32, vec![2, 2], &f32s).unwrap()),
            ("odd", TensorView::new(Stored::U8, vec![2], &i8s).unwrap()),
        ];
        safetensors::serialize_to_file(tensors, None, &dir.join("model.safetensors")).unwrap();
        Checkpoint::open(dir).unwrap()
    }

    fn read(checkpoint: &Checkpoint, key: &str, shape: &[usize], dtype: Dtype) -> Result<Vec<u8>, CheckpointError> {
        let mut out = Vec::new();
        checkpoint.read(key, shape, dtype, |offset, bytes| {
            assert_eq!(offset, out.len() as u64);
            out.extend_from_slice(bytes);
            Ok::<(), CheckpointError>(())
        })?;
        Ok(out)
    }

    #[test]
    fn elements_convert_to_the_type_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        let checkpoint = checkpoint(dir.path());
        let mut row = Vec::new();
        for (dtype, last) in
            [(Dtype::Float32, 0.1f32), (Dtype::BFloat16, 0.100_097_656), (Dtype::Float16, 0.099_975_586)]
        {
            decode_row(&read(&checkpoint, "w", &[2, 2], dtype).unwrap(), dtype, &mut row);
            assert_eq!(row, [1.0, -2.5, 3.25, last], "{dtype:?}");
        }
    }

    #[test]
    fn errors_name_file_and_key() {
        let dir = tempfile::tempdir().unwrap();
        let checkpoint = checkpoint(dir.path());
        for (key, shape) in [("absent", &[2usize, 2][..]), ("w", &[4, 1]), ("odd", &[2])] {
            let error = read(&checkpoint, key, shape, Dtype::Float32).unwrap_err().to_string();
            let dir = dir.path().to_string_lossy().into_owned();
            assert!(error.contains(&format!("`{key}`")) && error.contains(&dir), "{error}");
        }
    }

    #[test]
    fn a_directory_without_weights_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(Checkpoint::open(dir.path()), Err(CheckpointError::Missing { .. })));
        std::fs::write(dir.path().join("model.safetensors"), b"not safetensors").unwrap();
        assert!(matches!(Checkpoint::open(dir.path()), Err(CheckpointError::File { .. })));
    }
}
