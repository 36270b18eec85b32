//! libibverbs, loaded when it is first needed: a program that could use an adapter also starts where there is none.
//!
//! Nothing is linked. What is missing on a machine is an error of the first use, with the name of the package.

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::sync::OnceLock;

use libloading::Library;

use super::VerbsError;
use super::ffi::{AsyncEvent, CompChannel, Context, Cq, Device, DeviceAttr, Mr, Pd, PortAttr, Qp, QpAttr, QpInitAttr};

/// The name under which every distribution has it; 1 is the version of its interface.
const NAME: &str = "libibverbs.so.1";

/// Declares the table of functions and how it is filled, so that a name stands once.
macro_rules! functions {
    ($($name:ident : fn($($argument:ty),*) $(-> $result:ty)?;)*) => {
        /// The functions of libibverbs that are used, as the header declares them.
        pub struct Verbs {
            $(pub $name: unsafe extern "C" fn($($argument),*) $(-> $result)?,)*
        }

        impl Verbs {
            fn find_in(library: &'static Library) -> Result<Self, libloading::Error> {
                Ok(Self {
                    $(
                        // SAFETY: libibverbs has had a function of this name and signature since version 1.1 of its
                        // interface, which is what NAME asks for; the library is never unloaded.
                        $name: unsafe { *library.get(concat!(stringify!($name), "\0").as_bytes())? },
                    )*
                })
            }
        }
    };
}

functions! {
    ibv_get_device_list: fn(*mut c_int) -> *mut *mut Device;
    ibv_free_device_list: fn(*mut *mut Device);
    ibv_get_device_name: fn(*mut Device) -> *const c_char;
    ibv_open_device: fn(*mut Device) -> *mut Context;
    ibv_close_device: fn(*mut Context) -> c_int;
    ibv_query_device: fn(*mut Context, *mut DeviceAttr) -> c_int;
    ibv_query_port: fn(*mut Context, u8, *mut PortAttr) -> c_int;
    ibv_get_async_event: fn(*mut Context, *mut AsyncEvent) -> c_int;
    ibv_ack_async_event: fn(*mut AsyncEvent);
    ibv_alloc_pd: fn(*mut Context) -> *mut Pd;
    ibv_dealloc_pd: fn(*mut Pd) -> c_int;
    ibv_reg_mr: fn(*mut Pd, *mut c_void, usize, c_int) -> *mut Mr;
    ibv_dereg_mr: fn(*mut Mr) -> c_int;
    ibv_create_comp_channel: fn(*mut Context) -> *mut CompChannel;
    ibv_destroy_comp_channel: fn(*mut CompChannel) -> c_int;
    ibv_create_cq: fn(*mut Context, c_int, *mut c_void, *mut CompChannel, c_int) -> *mut Cq;
    ibv_destroy_cq: fn(*mut Cq) -> c_int;
    ibv_get_cq_event: fn(*mut CompChannel, *mut *mut Cq, *mut *mut c_void) -> c_int;
    ibv_ack_cq_events: fn(*mut Cq, c_uint);
    ibv_create_qp: fn(*mut Pd, *mut QpInitAttr) -> *mut Qp;
    ibv_modify_qp: fn(*mut Qp, *mut QpAttr, c_int) -> c_int;
    ibv_destroy_qp: fn(*mut Qp) -> c_int;
    ibv_wc_status_str: fn(c_uint) -> *const c_char;
}

/// The library, loaded once for the life of the process.
///
/// # Errors
/// [`VerbsError::NoLibrary`]; asked again, it is looked for again only by a process started anew.
pub fn verbs() -> Result<&'static Verbs, VerbsError> {
    static LOADED: OnceLock<Result<Verbs, String>> = OnceLock::new();
    LOADED.get_or_init(load).as_ref().map_err(|why| VerbsError::NoLibrary { why: why.clone() })
}

fn load() -> Result<Verbs, String> {
    // SAFETY: loading runs the library's own initialisers, which every program linked with it runs as well.
    let library = unsafe { Library::new(NAME) }.map_err(|error| error.to_string())?;
    Verbs::find_in(Box::leak(Box::new(library))).map_err(|error| error.to_string())
}

/// What the library calls a completion's status.
pub fn status_text(verbs: &Verbs, status: c_uint) -> String {
    // SAFETY: the function takes any number and returns a string that is never freed.
    let text = unsafe { CStr::from_ptr((verbs.ibv_wc_status_str)(status)) };
    text.to_string_lossy().into_owned()
}
