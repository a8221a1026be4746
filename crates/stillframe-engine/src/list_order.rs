//! In which order the files of an image stand in a repository's list.

use stillframe_capture::SnapshotFile;

/// The order of a repository's file lists.
pub(crate) fn list_order(files: &[SnapshotFile]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..files.len()).collect();
    order.sort_by(|&a, &b| files.get(a).map(list_key).cmp(&files.get(b).map(list_key)));
    order
}

/// Directory and path within it. The image has files of a named directory below a directory of that name, or, where the
/// engine wants them there, in the main one.
pub(crate) fn list_key(file: &SnapshotFile) -> (&[u8], &[u8]) {
    let path = file.path.as_bytes();
    let directory = file.directory.as_bytes();
    let within = path.strip_prefix(directory).and_then(|rest| rest.strip_prefix(b"/"));
    (directory, if directory.is_empty() { path } else { within.unwrap_or(path) })
}
