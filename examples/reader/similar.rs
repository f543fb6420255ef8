//! Opens a collection, looks an item up by its own id, and finds the items most similar to it.
//!
//!     rustc similar.rs -L "$(dirname LIBRARY)" -l dylib=mgqe_native -o similar
//!     LD_LIBRARY_PATH="$(dirname LIBRARY)" ./similar items/ item-17 5
//!
//! where LIBRARY is what `python -c 'import mgqe_reader as r; print(r.library_path())'` prints. The declarations are those
//! of mgqe.h; bindgen makes them of it as well.

use std::ffi::{c_char, CStr, CString};
use std::ptr::{null, null_mut};

#[repr(C)]
pub struct Reader([u8; 0]); // mgqe_reader
#[repr(C)]
pub struct Ids([u8; 0]); // mgqe_ids

#[repr(C)]
pub struct Search {
    score: i32,
    threads: i32,
    bias: *const f32,
    excluded: *const i64,
    excluded_offsets: *const i64,
    num_excluded: i64,
    candidates: *const i64,
    candidate_offsets: *const i64,
    num_candidates: i64,
}

const COSINE: i32 = 1;

extern "C" {
    fn mgqe_reader_error() -> *const c_char;
    fn mgqe_reader_open(path: *const c_char, flags: i32, reader: *mut *mut Reader) -> i32;
    fn mgqe_reader_close(reader: *mut Reader);
    fn mgqe_reader_embedding_dim(reader: *const Reader) -> i64;
    fn mgqe_reader_ids(reader: *const Reader) -> *const Ids;
    fn mgqe_reader_lookup(reader: *const Reader, ids: *const i64, n: i64, out: *mut f32, threads: i32) -> i32;
    fn mgqe_reader_topk(
        reader: *const Reader,
        queries: *const f32,
        num_queries: i64,
        k: i64,
        search: *const Search,
        scores: *mut f32,
        ids: *mut i64,
    ) -> i32;
    fn mgqe_ids_rows_of_texts(
        ids: *const Ids,
        bytes: *const c_char,
        offsets: *const i64,
        n: i64,
        rows: *mut i64,
    ) -> i32;
    fn mgqe_ids_text(ids: *const Ids, row: i64, bytes: *mut *const c_char, length: *mut i64) -> i32;
}

fn checked(status: i32) -> Result<(), String> {
    match status {
        0 => Ok(()),
        // Safe: the message is never null, and valid until the next failure of this thread.
        _ => Err(unsafe { CStr::from_ptr(mgqe_reader_error()) }.to_string_lossy().into_owned()),
    }
}

/// An open collection with string ids.
pub struct Collection {
    reader: *mut Reader,
}

// What is open never changes, so that any number of threads may use it.
unsafe impl Send for Collection {}
unsafe impl Sync for Collection {}

impl Collection {
    pub fn open(path: &str) -> Result<Collection, String> {
        let path = CString::new(path).map_err(|error| error.to_string())?;
        let mut reader = null_mut();
        checked(unsafe { mgqe_reader_open(path.as_ptr(), 0, &mut reader) })?;
        let collection = Collection { reader };
        if unsafe { mgqe_reader_ids(reader) }.is_null() {
            return Err("the table has no ids of its own: give the folder of a collection".into());
        }
        Ok(collection)
    }

    /// The row of an id, None if it is not there.
    pub fn row_of(&self, id: &str) -> Result<Option<i64>, String> {
        let (offsets, mut row) = ([0, id.len() as i64], -1);
        checked(unsafe {
            mgqe_ids_rows_of_texts(mgqe_reader_ids(self.reader), id.as_ptr().cast(), offsets.as_ptr(), 1, &mut row)
        })?;
        Ok(if row < 0 { None } else { Some(row) })
    }

    /// The vector of a row.
    pub fn vector(&self, row: i64) -> Result<Vec<f32>, String> {
        let mut vector = vec![0.0; unsafe { mgqe_reader_embedding_dim(self.reader) } as usize];
        checked(unsafe { mgqe_reader_lookup(self.reader, &row, 1, vector.as_mut_ptr(), 0) })?;
        Ok(vector)
    }

    /// The k ids most similar to a row, that one left out, and their cosines.
    pub fn similar(&self, row: i64, k: usize) -> Result<Vec<(String, f32)>, String> {
        let query = self.vector(row)?;
        let (mut scores, mut rows) = (vec![0.0; k], vec![0; k]);
        let search = Search {
            score: COSINE,
            threads: 0,
            bias: null(),
            excluded: &row,
            excluded_offsets: null(),
            num_excluded: 1,
            candidates: null(),
            candidate_offsets: null(),
            num_candidates: 0,
        };
        checked(unsafe {
            mgqe_reader_topk(self.reader, query.as_ptr(), 1, k as i64, &search, scores.as_mut_ptr(), rows.as_mut_ptr())
        })?;
        rows.iter().zip(scores).filter(|(row, _)| **row >= 0).map(|(row, score)| Ok((self.id_of(*row)?, score))).collect()
    }

    fn id_of(&self, row: i64) -> Result<String, String> {
        let (mut bytes, mut length) = (null(), 0);
        checked(unsafe { mgqe_ids_text(mgqe_reader_ids(self.reader), row, &mut bytes, &mut length) })?;
        let text = unsafe { std::slice::from_raw_parts(bytes.cast::<u8>(), length as usize) };
        Ok(String::from_utf8_lossy(text).into_owned())
    }
}

impl Drop for Collection {
    fn drop(&mut self) {
        unsafe { mgqe_reader_close(self.reader) }
    }
}

fn run(arguments: &[String]) -> Result<(), String> {
    let [_, folder, id, k] = arguments else {
        return Err("usage: similar COLLECTION ID K".into());
    };
    let k = k.parse().map_err(|_| format!("K must be a whole number, got {k}"))?;
    let items = Collection::open(folder)?;
    let row = items.row_of(id)?.ok_or(format!("there is no id {id}"))?;
    for (other, score) in items.similar(row, k)? {
        println!("{other} {score:.6}");
    }
    Ok(())
}

fn main() {
    if let Err(message) = run(&std::env::args().collect::<Vec<_>>()) {
        eprintln!("similar: {message}");
        std::process::exit(1);
    }
}
