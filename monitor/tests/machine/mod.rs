//! A recorded machine with many kinds of processes: its memory and its kernel.

use std::fs;
use std::path::{Path, PathBuf};

use introspect::Kernel;
use remote_memory::image::Image;

const MACHINE: &str = "linux-6.1-processes";

fn recorded(suffix: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../introspect/tests/images");
    folder.join(format!("{MACHINE}.{suffix}"))
}

pub fn image() -> Image {
    Image::load(xz2::read::XzDecoder::new(fs::File::open(recorded("image.xz")).unwrap())).unwrap()
}

pub fn kernel() -> Kernel {
    serde_json::from_slice(&fs::read(recorded("kernel.json")).unwrap()).unwrap()
}
