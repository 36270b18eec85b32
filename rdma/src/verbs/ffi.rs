//! What `infiniband/verbs.h` declares, as far as it is used here: numbers, structures, signatures.
//!
//! The interface of libibverbs has been binary compatible since its version 1.1 of 2008, and the structures below are
//! part of it: programs of then run with the library of now. Only the members that are used have their own names; a
//! test asks the C compiler whether each is where the header has it (`rdma/tests/verbs_layout.rs`).
#![allow(missing_docs, reason = "the names are those of the header, which explains them")]

use std::ffi::{c_char, c_int, c_uint, c_void};

/// `struct ibv_context_ops`: what is inline in the header goes through here.
#[repr(C)]
pub struct ContextOps {
    pub before_poll_cq: [*mut c_void; 11],
    pub poll_cq: Option<unsafe extern "C" fn(*mut Cq, c_int, *mut Wc) -> c_int>,
    pub req_notify_cq: Option<unsafe extern "C" fn(*mut Cq, c_int) -> c_int>,
    pub before_post_send: [*mut c_void; 12],
    pub post_send: Option<unsafe extern "C" fn(*mut Qp, *mut SendWr, *mut *mut SendWr) -> c_int>,
    pub after_post_send: [*mut c_void; 6],
}

/// `struct ibv_context`, without what lies behind the descriptors.
#[repr(C)]
pub struct Context {
    pub device: *mut Device,
    pub ops: ContextOps,
    pub cmd_fd: c_int,
    pub async_fd: c_int,
}

/// `struct ibv_device`, only ever asked for its name.
#[repr(C)]
pub struct Device {
    opaque: [u8; 0],
}

/// `struct ibv_pd`, only ever handed back.
#[repr(C)]
pub struct Pd {
    opaque: [u8; 0],
}

/// `struct ibv_comp_channel`.
#[repr(C)]
pub struct CompChannel {
    pub context: *mut Context,
    pub fd: c_int,
}

/// `struct ibv_cq`, only ever handed back.
#[repr(C)]
pub struct Cq {
    opaque: [u8; 0],
}

/// `struct ibv_mr`.
#[repr(C)]
pub struct Mr {
    pub context: *mut Context,
    pub pd: *mut Pd,
    pub addr: *mut c_void,
    pub length: usize,
    pub handle: u32,
    pub lkey: u32,
    pub rkey: u32,
}

/// `struct ibv_qp`, without what lies behind its number.
#[repr(C)]
pub struct Qp {
    pub context: *mut Context,
    pub qp_context: *mut c_void,
    pub pd: *mut Pd,
    pub send_cq: *mut Cq,
    pub recv_cq: *mut Cq,
    pub srq: *mut c_void,
    pub handle: u32,
    pub qp_num: u32,
}

/// `struct ibv_qp_cap`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct QpCap {
    pub max_send_wr: u32,
    pub max_recv_wr: u32,
    pub max_send_sge: u32,
    pub max_recv_sge: u32,
    pub max_inline_data: u32,
}

/// `struct ibv_qp_init_attr`.
#[repr(C)]
pub struct QpInitAttr {
    pub qp_context: *mut c_void,
    pub send_cq: *mut Cq,
    pub recv_cq: *mut Cq,
    pub srq: *mut c_void,
    pub cap: QpCap,
    pub qp_type: c_uint,
    pub sq_sig_all: c_int,
}

/// `struct ibv_global_route`. A GID is 16 bytes, aligned as its two 64-bit halves are.
#[repr(C, align(8))]
#[derive(Clone, Copy, Default)]
pub struct GlobalRoute {
    pub dgid: [u8; 16],
    pub flow_label: u32,
    pub sgid_index: u8,
    pub hop_limit: u8,
    pub traffic_class: u8,
}

/// `struct ibv_ah_attr`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct AhAttr {
    pub grh: GlobalRoute,
    pub dlid: u16,
    pub sl: u8,
    pub src_path_bits: u8,
    pub static_rate: u8,
    pub is_global: u8,
    pub port_num: u8,
}

/// `struct ibv_qp_attr`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct QpAttr {
    pub qp_state: c_uint,
    pub cur_qp_state: c_uint,
    pub path_mtu: c_uint,
    pub path_mig_state: c_uint,
    pub qkey: u32,
    pub rq_psn: u32,
    pub sq_psn: u32,
    pub dest_qp_num: u32,
    pub qp_access_flags: c_uint,
    pub cap: QpCap,
    pub ah_attr: AhAttr,
    pub alt_ah_attr: AhAttr,
    pub pkey_index: u16,
    pub alt_pkey_index: u16,
    pub en_sqd_async_notify: u8,
    pub sq_draining: u8,
    pub max_rd_atomic: u8,
    pub max_dest_rd_atomic: u8,
    pub min_rnr_timer: u8,
    pub port_num: u8,
    pub timeout: u8,
    pub retry_cnt: u8,
    pub rnr_retry: u8,
    pub alt_port_num: u8,
    pub alt_timeout: u8,
    pub rate_limit: u32,
}

/// `struct ibv_sge`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct Sge {
    pub addr: u64,
    pub length: u32,
    pub lkey: u32,
}

/// `struct ibv_send_wr`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct SendWr {
    pub wr_id: u64,
    pub next: *mut SendWr,
    pub sg_list: *mut Sge,
    pub num_sge: c_int,
    pub opcode: c_uint,
    pub send_flags: c_uint,
    pub imm_data: u32,
    pub wr: Remote,
    /// Of other kinds of work.
    pub rest: [u64; 7],
}

/// The union inside `struct ibv_send_wr` that says where the remote memory is.
#[repr(C)]
#[derive(Clone, Copy)]
pub union Remote {
    pub rdma: Rdma,
    pub atomic: Atomic,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct Rdma {
    pub remote_addr: u64,
    pub rkey: u32,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct Atomic {
    pub remote_addr: u64,
    pub compare_add: u64,
    pub swap: u64,
    pub rkey: u32,
}

/// `struct ibv_wc`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct Wc {
    pub wr_id: u64,
    pub status: c_uint,
    pub opcode: c_uint,
    pub vendor_err: u32,
    pub byte_len: u32,
    pub imm_data: u32,
    pub qp_num: u32,
    pub src_qp: u32,
    pub wc_flags: c_uint,
    pub pkey_index: u16,
    pub slid: u16,
    pub sl: u8,
    pub dlid_path_bits: u8,
}

/// `struct ibv_async_event`; the element is a queue pair, a completion queue or a port, as the type says.
#[repr(C)]
pub struct AsyncEvent {
    pub element: *mut c_void,
    pub event_type: c_uint,
}

/// `struct ibv_device_attr`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct DeviceAttr {
    pub fw_ver: [c_char; 64],
    pub node_guid: u64,
    pub sys_image_guid: u64,
    pub max_mr_size: u64,
    pub page_size_cap: u64,
    pub vendor_id: u32,
    pub vendor_part_id: u32,
    pub hw_ver: u32,
    pub max_qp: c_int,
    pub max_qp_wr: c_int,
    pub device_cap_flags: c_uint,
    pub max_sge: c_int,
    pub max_sge_rd: c_int,
    pub max_cq: c_int,
    pub max_cqe: c_int,
    pub max_mr: c_int,
    pub max_pd: c_int,
    pub max_qp_rd_atom: c_int,
    pub max_ee_rd_atom: c_int,
    pub max_res_rd_atom: c_int,
    pub max_qp_init_rd_atom: c_int,
    pub max_ee_init_rd_atom: c_int,
    pub atomic_cap: c_uint,
    /// From `max_ee` to the end, with room for members of libraries to come.
    pub rest: [u32; 32],
}

/// `struct _compat_ibv_port_attr`, which is the beginning of `struct ibv_port_attr`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct PortAttr {
    pub state: c_uint,
    pub max_mtu: c_uint,
    pub active_mtu: c_uint,
    pub gid_tbl_len: c_int,
    pub port_cap_flags: u32,
    pub max_msg_sz: u32,
    /// From `bad_pkey_cntr` to the end, with room for members of libraries to come.
    pub rest: [u32; 16],
}

pub const QPT_RC: c_uint = 2;

/// `enum ibv_qp_state`.
pub mod state {
    use std::ffi::c_uint;
    pub const INIT: c_uint = 1;
    pub const RTR: c_uint = 2;
    pub const RTS: c_uint = 3;
}

/// `enum ibv_qp_attr_mask`.
pub mod mask {
    use std::ffi::c_int;
    pub const STATE: c_int = 1 << 0;
    pub const ACCESS_FLAGS: c_int = 1 << 3;
    pub const PKEY_INDEX: c_int = 1 << 4;
    pub const PORT: c_int = 1 << 5;
    pub const AV: c_int = 1 << 7;
    pub const PATH_MTU: c_int = 1 << 8;
    pub const TIMEOUT: c_int = 1 << 9;
    pub const RETRY_CNT: c_int = 1 << 10;
    pub const RNR_RETRY: c_int = 1 << 11;
    pub const RQ_PSN: c_int = 1 << 12;
    pub const MAX_QP_RD_ATOMIC: c_int = 1 << 13;
    pub const MIN_RNR_TIMER: c_int = 1 << 15;
    pub const SQ_PSN: c_int = 1 << 16;
    pub const MAX_DEST_RD_ATOMIC: c_int = 1 << 17;
    pub const DEST_QPN: c_int = 1 << 20;
}

/// `enum ibv_access_flags`.
pub mod access {
    use std::ffi::c_uint;
    pub const LOCAL_WRITE: c_uint = 1;
    pub const REMOTE_WRITE: c_uint = 1 << 1;
    pub const REMOTE_READ: c_uint = 1 << 2;
    pub const REMOTE_ATOMIC: c_uint = 1 << 3;
}

/// `enum ibv_wr_opcode`.
pub mod opcode {
    use std::ffi::c_uint;
    pub const RDMA_WRITE: c_uint = 0;
    pub const RDMA_READ: c_uint = 4;
    pub const CMP_AND_SWP: c_uint = 5;
    pub const FETCH_AND_ADD: c_uint = 6;
}

/// `enum ibv_send_flags`.
pub mod send {
    use std::ffi::c_uint;
    pub const SIGNALED: c_uint = 1 << 1;
    pub const INLINE: c_uint = 1 << 3;
}

/// `enum ibv_event_type`.
pub mod event {
    use std::ffi::c_uint;
    pub const QP_FATAL: c_uint = 1;
    pub const QP_REQ_ERR: c_uint = 2;
    pub const QP_ACCESS_ERR: c_uint = 3;
    pub const COMM_EST: c_uint = 4;
    pub const DEVICE_FATAL: c_uint = 8;
    pub const PORT_ACTIVE: c_uint = 9;
    pub const PORT_ERR: c_uint = 10;
    pub const GID_CHANGE: c_uint = 18;
}

/// `enum ibv_wc_status`.
pub mod status {
    use std::ffi::c_uint;
    pub const SUCCESS: c_uint = 0;
    pub const WR_FLUSH_ERR: c_uint = 5;
    pub const REM_INV_REQ_ERR: c_uint = 9;
    pub const REM_ACCESS_ERR: c_uint = 10;
    pub const REM_OP_ERR: c_uint = 11;
    pub const RETRY_EXC_ERR: c_uint = 12;
    pub const RNR_RETRY_EXC_ERR: c_uint = 13;
}
