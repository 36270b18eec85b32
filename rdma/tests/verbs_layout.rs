//! Whether our declarations of libibverbs' structures are those of its header, asked of the C compiler.
#![cfg(feature = "verbs")]

use std::fmt::Write as _;
use std::io::Write as _;
use std::mem::{offset_of, size_of};
use std::process::{Command, Stdio};

use rdma::verbs::ffi;

/// A C expression, and the number that it has to be.
type Claims = Vec<(String, usize)>;

/// Claims where each member of a structure lies; the C name differs where ours is a prefix or a union's arm.
macro_rules! members {
    ($claims:ident, $ours:ty, $theirs:literal, $($member:ident $(as $name:literal)?),*) => {
        $({
            let name = stringify!($member);
            $(let name = { let _ = name; $name };)?
            $claims.push((format!("offsetof({}, {name})", $theirs), offset_of!($ours, $member)));
        })*
    };
}

/// Claims that a structure is as large as ours.
fn size<T>(claims: &mut Claims, theirs: &str) {
    claims.push((format!("sizeof({theirs})"), size_of::<T>()));
}

fn layouts() -> Claims {
    let mut all = Claims::new();
    members!(all, ffi::Context, "struct ibv_context", device, ops, cmd_fd, async_fd);
    members!(all, ffi::ContextOps, "struct ibv_context_ops", poll_cq, req_notify_cq, post_send);
    size::<ffi::ContextOps>(&mut all, "struct ibv_context_ops");
    members!(all, ffi::CompChannel, "struct ibv_comp_channel", context, fd);
    members!(all, ffi::Mr, "struct ibv_mr", context, pd, addr, length, handle, lkey, rkey);
    members!(all, ffi::Qp, "struct ibv_qp", qp_num);
    members!(all, ffi::QpInitAttr, "struct ibv_qp_init_attr", send_cq, recv_cq, srq, cap, qp_type, sq_sig_all);
    size::<ffi::QpInitAttr>(&mut all, "struct ibv_qp_init_attr");
    let grh = "struct ibv_global_route";
    members!(all, ffi::GlobalRoute, "struct ibv_global_route", dgid, flow_label, sgid_index, hop_limit, traffic_class);
    size::<ffi::GlobalRoute>(&mut all, grh);
    members!(all, ffi::AhAttr, "struct ibv_ah_attr", grh, dlid, sl, src_path_bits, static_rate, is_global, port_num);
    size::<ffi::AhAttr>(&mut all, "struct ibv_ah_attr");
    members!(
        all,
        ffi::QpAttr,
        "struct ibv_qp_attr",
        qp_state,
        path_mtu,
        rq_psn,
        sq_psn,
        dest_qp_num,
        qp_access_flags,
        cap,
        ah_attr,
        pkey_index,
        max_rd_atomic,
        max_dest_rd_atomic,
        min_rnr_timer,
        port_num,
        timeout,
        retry_cnt,
        rnr_retry
    );
    size::<ffi::QpAttr>(&mut all, "struct ibv_qp_attr");
    members!(all, ffi::Sge, "struct ibv_sge", addr, length, lkey);
    members!(all, ffi::SendWr, "struct ibv_send_wr", wr_id, next, sg_list, num_sge, opcode, send_flags, wr);
    members!(all, ffi::Rdma, "__typeof__(((struct ibv_send_wr *)0)->wr.rdma)", remote_addr, rkey);
    members!(
        all,
        ffi::Atomic,
        "__typeof__(((struct ibv_send_wr *)0)->wr.atomic)",
        remote_addr,
        compare_add,
        swap,
        rkey
    );
    size::<ffi::SendWr>(&mut all, "struct ibv_send_wr");
    members!(all, ffi::Wc, "struct ibv_wc", wr_id, status, opcode, qp_num);
    size::<ffi::Wc>(&mut all, "struct ibv_wc");
    members!(all, ffi::AsyncEvent, "struct ibv_async_event", element, event_type);
    members!(all, ffi::DeviceAttr, "struct ibv_device_attr", max_qp_wr, max_cqe, max_qp_rd_atom, max_qp_init_rd_atom);
    members!(all, ffi::PortAttr, "struct ibv_port_attr", state, active_mtu);
    all
}

fn numbers() -> Claims {
    use ffi::{access, event, mask, opcode, send, state, status};
    let mut all = Claims::new();
    let mut claim = |name: &str, ours: u32| all.push((name.to_owned(), ours as usize));
    claim("IBV_QPT_RC", ffi::QPT_RC);
    claim("IBV_QPS_INIT", state::INIT);
    claim("IBV_QPS_RTR", state::RTR);
    claim("IBV_QPS_RTS", state::RTS);
    for (name, ours) in [
        ("STATE", mask::STATE),
        ("ACCESS_FLAGS", mask::ACCESS_FLAGS),
        ("PKEY_INDEX", mask::PKEY_INDEX),
        ("PORT", mask::PORT),
        ("AV", mask::AV),
        ("PATH_MTU", mask::PATH_MTU),
        ("TIMEOUT", mask::TIMEOUT),
        ("RETRY_CNT", mask::RETRY_CNT),
        ("RNR_RETRY", mask::RNR_RETRY),
        ("RQ_PSN", mask::RQ_PSN),
        ("MAX_QP_RD_ATOMIC", mask::MAX_QP_RD_ATOMIC),
        ("MIN_RNR_TIMER", mask::MIN_RNR_TIMER),
        ("SQ_PSN", mask::SQ_PSN),
        ("MAX_DEST_RD_ATOMIC", mask::MAX_DEST_RD_ATOMIC),
        ("DEST_QPN", mask::DEST_QPN),
    ] {
        claim(&format!("IBV_QP_{name}"), ours as u32);
    }
    claim("IBV_ACCESS_LOCAL_WRITE", access::LOCAL_WRITE);
    claim("IBV_ACCESS_REMOTE_WRITE", access::REMOTE_WRITE);
    claim("IBV_ACCESS_REMOTE_READ", access::REMOTE_READ);
    claim("IBV_ACCESS_REMOTE_ATOMIC", access::REMOTE_ATOMIC);
    claim("IBV_WR_RDMA_WRITE", opcode::RDMA_WRITE);
    claim("IBV_WR_RDMA_READ", opcode::RDMA_READ);
    claim("IBV_WR_ATOMIC_CMP_AND_SWP", opcode::CMP_AND_SWP);
    claim("IBV_WR_ATOMIC_FETCH_AND_ADD", opcode::FETCH_AND_ADD);
    claim("IBV_SEND_SIGNALED", send::SIGNALED);
    claim("IBV_SEND_INLINE", send::INLINE);
    claim("IBV_EVENT_QP_FATAL", event::QP_FATAL);
    claim("IBV_EVENT_QP_REQ_ERR", event::QP_REQ_ERR);
    claim("IBV_EVENT_QP_ACCESS_ERR", event::QP_ACCESS_ERR);
    claim("IBV_EVENT_COMM_EST", event::COMM_EST);
    claim("IBV_EVENT_DEVICE_FATAL", event::DEVICE_FATAL);
    claim("IBV_EVENT_PORT_ACTIVE", event::PORT_ACTIVE);
    claim("IBV_EVENT_PORT_ERR", event::PORT_ERR);
    claim("IBV_EVENT_GID_CHANGE", event::GID_CHANGE);
    claim("IBV_WC_SUCCESS", status::SUCCESS);
    claim("IBV_WC_WR_FLUSH_ERR", status::WR_FLUSH_ERR);
    claim("IBV_WC_REM_INV_REQ_ERR", status::REM_INV_REQ_ERR);
    claim("IBV_WC_REM_ACCESS_ERR", status::REM_ACCESS_ERR);
    claim("IBV_WC_REM_OP_ERR", status::REM_OP_ERR);
    claim("IBV_WC_RETRY_EXC_ERR", status::RETRY_EXC_ERR);
    claim("IBV_WC_RNR_RETRY_EXC_ERR", status::RNR_RETRY_EXC_ERR);
    all
}

/// The compiler names each claim that does not hold.
fn compile(claims: &Claims) -> Result<(), String> {
    let mut program = String::from("#include <stddef.h>\n#include <infiniband/verbs.h>\n");
    for (expression, ours) in claims {
        let _ = writeln!(program, "_Static_assert({expression} == {ours}, \"{expression} is not {ours}\");");
    }
    let mut compiler = Command::new("cc")
        .args(["-fsyntax-only", "-x", "c", "-"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("cc runs: scripts/setup");
    compiler.stdin.take().expect("it was asked for").write_all(program.as_bytes()).unwrap();
    let output = compiler.wait_with_output().unwrap();
    if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).into_owned()) }
}

#[test]
fn structures_and_numbers_are_those_of_the_header() {
    let claims: Claims = layouts().into_iter().chain(numbers()).collect();
    compile(&claims).unwrap_or_else(|said| panic!("{said}"));
}

#[test]
fn a_claim_that_does_not_hold_is_found() {
    let said = compile(&vec![("sizeof(struct ibv_sge)".to_owned(), size_of::<ffi::Sge>() + 1)]).unwrap_err();
    assert!(said.contains("is not 17"), "{said}");
}

/// What comes back of queries must have room, also where a later library knows more members.
#[test]
fn there_is_room_for_what_a_library_writes() {
    let check = |theirs: &str, ours: usize| {
        compile(&vec![(format!("(sizeof({theirs}) <= {ours})"), 1)]).unwrap_or_else(|said| panic!("{said}"));
    };
    check("struct ibv_device_attr", size_of::<ffi::DeviceAttr>());
    check("struct ibv_port_attr", size_of::<ffi::PortAttr>());
}
