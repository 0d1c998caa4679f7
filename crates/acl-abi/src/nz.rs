//! FRACTAL_NZ: how a matrix lies in the private format of the cube cores.
//!
//! A matrix of `rows · columns` elements is cut into strips of 32 bytes of columns; each strip holds its part of every row, one row
//! after the other, and rows are padded to a multiple of 16. So element `(r, c)` lies at
//! `c / width · strip + r · width + c % width`, with `width` elements in 32 bytes and `strip = ⌈rows / 16⌉ · 16 · width`. Several
//! matrices (leading dimensions) follow each other. CANN writes the same as sizes: `[…, ⌈columns / width⌉, ⌈rows / 16⌉, 16, width]`.
//!
//! A tensor says that it lies so by its format alone. Its sizes and strides are those that the matrix had row by row: they tell
//! which of the last two dimensions are its rows, since transposing a view exchanges them and moves nothing. (A matrix of one column
//! that is handed over transposed looks like one of one row, and is taken for that.)

use crate::values::ACL_FORMAT_FRACTAL_NZ;
use crate::{DataType, TensorDesc};

/// Bytes of a row in one strip.
const STRIP_BYTES: i64 = 32;
/// Rows are padded to a multiple of this.
const ROWS: i64 = 16;

/// Elements of a row in one strip, for elements of this type.
pub fn width(dtype: DataType) -> i64 {
    STRIP_BYTES * 8 / i64::from(dtype.bits())
}

/// Elements that one matrix takes, padding included; `None` on overflow or for negative sizes.
pub fn elements(dtype: DataType, rows: i64, columns: i64) -> Option<i64> {
    if rows < 0 || columns < 0 {
        return None;
    }
    let padded = |size: i64, of: i64| size.checked_add(of - 1).map(|size| size / of * of);
    padded(rows, ROWS)?.checked_mul(padded(columns, width(dtype))?)
}

/// Sizes of the storage of matrices with these sizes, as CANN writes them; `None` for fewer than two dimensions, or for more than
/// fit.
pub fn storage_dims(dtype: DataType, dims: &[i64]) -> Option<Vec<i64>> {
    let [lead @ .., rows, columns] = dims else { return None };
    elements(dtype, *rows, *columns)?;
    let strips = (columns + width(dtype) - 1) / width(dtype);
    Some([lead, &[strips, (rows + ROWS - 1) / ROWS, ROWS, width(dtype)]].concat())
}

/// How a view tagged FRACTAL_NZ lies in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Matrices {
    /// The dimension of the view that is the matrix's rows.
    pub rows: usize,
    /// The dimension that is its columns.
    pub columns: usize,
    /// Elements of a row in one strip.
    pub width: i64,
    /// Elements from one strip to the next.
    pub strip: i64,
    /// Elements from one matrix to the next.
    pub matrix: i64,
    /// The first matrix of the view.
    pub first: i64,
    /// How many there are.
    pub count: i64,
}

impl Matrices {
    /// Behind the last element, in elements from the storage base.
    pub fn end(&self) -> Option<i64> {
        self.first.checked_add(self.count)?.checked_mul(self.matrix)
    }
}

/// How `desc` lies, if it is tagged FRACTAL_NZ and has a matrix; `None` if it is addressed by its strides.
///
/// # Errors
/// A view that is not one of whole matrices: part of one, or with gaps.
#[allow(clippy::result_unit_err)]
pub fn matrices(desc: &TensorDesc) -> Result<Option<Matrices>, ()> {
    let ndim = usize::from(desc.ndim);
    if desc.format != ACL_FORMAT_FRACTAL_NZ || ndim < 2 || desc.dims().iter().any(|&d| d <= 0) {
        return Ok(None);
    }
    let (dims, strides) = (desc.dims(), desc.strides());
    let (a, b) = (ndim - 2, ndim - 1);
    // A dimension of one element may have any stride.
    let row_by_row = |rows: usize, columns: usize| {
        (strides[columns] == 1 || dims[columns] == 1) && (strides[rows] == dims[columns] || dims[rows] == 1)
    };
    let (rows, columns) = if strides[b] == 1 && row_by_row(a, b) {
        (a, b)
    } else if row_by_row(b, a) {
        (b, a)
    } else if row_by_row(a, b) {
        (a, b)
    } else {
        return Err(());
    };
    let plain = dims[a].checked_mul(dims[b]).ok_or(())?;
    let (mut count, mut want) = (1i64, plain);
    for (&size, &stride) in dims[..a].iter().zip(&strides[..a]).rev() {
        if size != 1 && stride != want {
            return Err(());
        }
        count = count.checked_mul(size).ok_or(())?;
        want = want.checked_mul(size).ok_or(())?;
    }
    if desc.offset < 0 || desc.offset % plain != 0 {
        return Err(());
    }
    let width = width(desc.dtype);
    let matrix = elements(desc.dtype, dims[rows], dims[columns]).ok_or(())?;
    let strip = elements(desc.dtype, dims[rows], width).ok_or(())?;
    let found = Matrices { rows, columns, width, strip, matrix, first: desc.offset / plain, count };
    found.end().ok_or(())?;
    Ok(Some(found))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DataType::{F16, F32, I4, I8};

    fn tagged(dtype: DataType, dims: &[i64]) -> TensorDesc {
        TensorDesc { format: ACL_FORMAT_FRACTAL_NZ, ..TensorDesc::contiguous(0, dtype, dims) }
    }

    #[test]
    fn sizes_are_padded_to_strips_and_rows() {
        assert_eq!(storage_dims(F16, &[2, 20, 33]), Some(vec![2, 3, 2, 16, 16]));
        assert_eq!(storage_dims(I8, &[510, 510]), Some(vec![16, 32, 16, 32]));
        assert_eq!(elements(F16, 510, 510), Some(262_144));
        assert_eq!((width(F32), width(F16), width(I8), width(I4)), (8, 16, 32, 64));
        assert_eq!(storage_dims(F16, &[5]), None);
        assert_eq!(elements(F16, i64::MAX, 2), None);
        assert_eq!(elements(F16, -1, 2), None);
    }

    #[test]
    fn strides_tell_rows_from_columns() {
        let plain = matrices(&tagged(F16, &[20, 33])).unwrap().unwrap();
        assert_eq!((plain.rows, plain.columns), (0, 1));
        assert_eq!((plain.strip, plain.matrix, plain.count), (32 * 16, 3 * 32 * 16, 1));
        let mut turned = tagged(F16, &[33, 20]);
        turned.strides[..2].copy_from_slice(&[1, 33]);
        let turned = matrices(&turned).unwrap().unwrap();
        assert_eq!((turned.rows, turned.columns, turned.strip), (1, 0, 32 * 16));
        // Transposed, of one row; and one column, as it lies.
        let mut row = tagged(F16, &[33, 1]);
        row.strides[..2].copy_from_slice(&[1, 33]);
        assert_eq!(matrices(&row).unwrap().unwrap().columns, 0);
        assert_eq!(matrices(&tagged(F16, &[33, 1])).unwrap().unwrap().columns, 1);
    }

    #[test]
    fn a_matrix_of_several_is_found_by_its_offset() {
        let mut one = tagged(F16, &[20, 33]);
        one.offset = 3 * 20 * 33;
        let found = matrices(&one).unwrap().unwrap();
        assert_eq!((found.first, found.end()), (3, Some(4 * 1536)));
        let all = matrices(&tagged(F16, &[2, 3, 20, 33])).unwrap().unwrap();
        assert_eq!((all.count, all.end()), (6, Some(6 * 1536)));
    }

    #[test]
    fn parts_and_gaps_are_refused_and_other_formats_left_alone() {
        let mut part = tagged(F16, &[10, 33]);
        part.offset = 33;
        assert_eq!(matrices(&part), Err(()));
        let mut gap = tagged(F16, &[20, 33]);
        gap.strides[0] = 40;
        assert_eq!(matrices(&gap), Err(()));
        let mut expanded = tagged(F16, &[4, 20, 33]);
        expanded.strides[0] = 0;
        assert_eq!(matrices(&expanded), Err(()));
        assert_eq!(matrices(&TensorDesc::contiguous(0, F16, &[20, 33])), Ok(None));
        assert_eq!(matrices(&tagged(F16, &[20])), Ok(None));
        assert_eq!(matrices(&tagged(F16, &[0, 33])), Ok(None));
        assert_eq!(matrices(&tagged(F16, &[i64::MAX, i64::MAX])), Err(()));
    }
}
