//! A program in C and this crate read each other's boxes.

use contbox::reader::read_box;
use contbox::shared::Pool;
use contbox::{ContinuationBox, Geometry, Opening, Snapshot};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::Command;

#[test]
fn boxes_written_in_c_read_back_and_the_other_way_round() {
    let geometry = Geometry::with(2, 256, 256);
    let scratch = std::env::temp_dir().join(format!("contbox-c-{}", std::process::id()));
    std::fs::create_dir_all(&scratch).unwrap();
    let (program, pool_file) = (scratch.join("program"), scratch.join("pool"));
    let source = Path::new(env!("CARGO_MANIFEST_DIR"));
    let compiled = Command::new("cc")
        .args(["-std=gnu11", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-O2", "-o"])
        .arg(&program)
        .arg(source.join("tests/c_interface.c"))
        .arg("-I")
        .arg(source.join("include"))
        .status();
    assert!(compiled.expect("a C compiler named cc").success());

    let file = std::fs::File::create_new(&pool_file).unwrap();
    drop(file);
    let file = std::fs::OpenOptions::new().read(true).write(true).open(&pool_file).unwrap();
    file.set_len(geometry.length_bytes()).unwrap();
    let pool = Pool::create(file.as_fd(), geometry, 5).unwrap();
    let mut opening = Opening::fresh(1, "[fd77::100]:80".parse().unwrap(), "[fd77::4]:99".parse().unwrap());
    opening.snapshot.lws = b"from Rust ".repeat(20);
    (opening.snapshot.lsr, opening.snapshot.lsw) = (300, 400);
    let slot = pool.slot(1).unwrap();
    ContinuationBox::create(slot, &opening).unwrap();

    let output = Command::new(&program).arg(&pool_file).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(String::from_utf8_lossy(&output.stdout), "from Rust ".repeat(20) + " 300 400\n");
    let image = pool.image();
    let from_c = read_box(&image, &geometry, 0, 1350).unwrap();
    assert_eq!((from_c.local, from_c.peer), ("10.77.0.100:8080".parse().unwrap(), "[fd77::4]:4711".parse().unwrap()));
    let state = format!("state {:0150}", 5);
    let Snapshot { lws, lsr, lsw } = from_c.snapshot;
    assert_eq!((lws.as_slice(), lsr, lsw), (state.as_bytes(), 1250, 35));
    assert_eq!(from_c.logged, (1250..1350).map(|offset| offset as u8).collect::<Vec<_>>());
    assert_eq!(read_box(&image, &geometry, 1, 300).unwrap().snapshot.lws, b"went on in C");
    std::fs::remove_dir_all(&scratch).unwrap();
}
