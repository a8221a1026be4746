//! What the user must know to open a database whose files lay in several directories.

use std::path::{Path, PathBuf};

use stillframe_capture::NamedDirectory;

/// Where the files of `directory` are now: at `below` in `main`, or, where that is empty, in `main` itself.
pub(crate) fn remark(directory: &NamedDirectory, main: &Path, below: &Path) -> String {
    let (original, option) = (directory.original.display(), &directory.option);
    let place = joined(main, below);
    let place = place.display();
    if below.as_os_str().is_empty() {
        format!("files of {original} are in {place} itself: open the database without {option} of its own")
    } else {
        format!("files of {original} are in {place}: open the database with {option} set to it")
    }
}

/// Without the empty parts, which would end it in a slash.
pub(crate) fn joined(main: &Path, below: &Path) -> PathBuf {
    main.join(below).components().collect()
}
