use super::*;
use crate::op::encode_op;
use crate::testing::{check_decode, check_round_trip};
use crate::{DecodeError, EncodeError, INLINE_COPY_BYTES_MAX};
use acl_abi::{DataType, OpCall, TensorDesc, ops};
use proptest::prelude::*;

fn encoded(record: &Record<'_>) -> Vec<u8> {
    let mut out = Vec::new();
    encode(record, None, &mut out).unwrap();
    out
}

fn decoded(bytes: &[u8]) -> Result<Record<'_>, DecodeError> {
    decode(bytes, &mut OpCall::new(ops::aclnnAbs))
}

/// Tags of records that are spelt out below.
const COPY_IN: u8 = 17;
const COPY_OUT: u8 = 18;
const HINT: u8 = 22;

const REPLY: ReplyTo = ReplyTo { slot: 7, seq: 0xdead_beef };

#[test]
fn malformed_records_are_refused() {
    let copy = Record::CopyIn { dst: 1, source: HostSource::Inline(b"abc"), stream: Some(1), reply: Some(REPLY) };
    let cases: [(&str, Vec<u8>); 8] = [
        ("empty", vec![]),
        ("unknown tag", vec![23]),
        ("trailing byte", [encoded(&Record::DeviceSync { reply: REPLY }), vec![0]].concat()),
        ("unknown source", vec![COPY_IN, 0, 0, 0, 0, 0, 0, 0, 0, 3]),
        ("inline length above the limit", [&[COPY_IN, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 4][..], &[0; 1100]].concat()),
        ("arena range overflows", [vec![COPY_OUT], vec![0xff; 16], vec![0; 9]].concat()),
        (
            "unknown flag",
            [&encoded(&Record::Memset { addr: 0, len: 0, value: 0, stream: None, reply: None })[..18], &[4]].concat(),
        ),
        ("unknown hint", [&[HINT, 6][..], &[0; 8]].concat()),
    ];
    for (what, bytes) in cases {
        assert!(decoded(&bytes).is_err(), "{what}: {:?}", decoded(&bytes));
    }
    let bytes = encoded(&copy);
    for len in 0..bytes.len() {
        assert!(decoded(&bytes[..len]).is_err(), "cut at {len}");
    }
    assert_eq!(decoded(&bytes), Ok(copy));
}

#[test]
fn encoder_refuses_what_the_decoder_would_and_leaves_the_buffer_alone() {
    let long = [0; INLINE_COPY_BYTES_MAX + 1];
    let tenant = "t".repeat(crate::TENANT_BYTES_MAX + 1);
    let range = ArenaRange { offset: u64::MAX, len: 1 };
    let cases = [
        Record::CopyIn { dst: 0, source: HostSource::Inline(&long), stream: None, reply: None },
        Record::CopyIn { dst: 0, source: HostSource::Pinned(range), stream: None, reply: None },
        Record::CopyOut { dst: range, src: 0, stream: None, reply: None },
        Record::Op { stream: 1 },
        Record::Hint(Hint::Admitted {
            request: 1,
            prompt_tokens: 1,
            max_tokens: 1,
            ttft_deadline_ms: 1,
            tpot_target_ms: 1,
            priority: 1,
            tenant,
        }),
    ];
    let mut out = b"before".to_vec();
    for record in cases {
        assert!(encode(&record, None, &mut out).is_err(), "{record:?}");
        assert_eq!(out, b"before");
    }
    let call = OpCall::new(ops::aclnnAbs);
    assert_eq!(encode(&Record::DeviceSync { reply: REPLY }, Some(&call), &mut out), Err(EncodeError::CallMismatch));
}

#[test]
fn conditions_are_ascendcls() {
    use ValueCondition::{And, Equal, GreaterOrEqual, Nor};
    for (until, memory, value, want) in [
        (GreaterOrEqual, 5, 5, true),
        (GreaterOrEqual, 4, 5, false),
        (GreaterOrEqual, 2, u64::MAX, true),
        (Equal, 7, 7, true),
        (Equal, 8, 7, false),
        (And, 6, 2, true),
        (And, 4, 3, false),
        (Nor, u64::MAX - 1, 1, false),
        (Nor, u64::MAX - 1, 0, true),
    ] {
        assert_eq!(until.holds(memory, value), want, "{until:?} {memory} {value}");
    }
    assert_eq!(ValueCondition::of(4), None);
    assert!((0..4).all(|n| ValueCondition::of(n).is_some_and(|c| c as u32 == n)));
}

#[test]
fn operator_records_from_a_body_and_from_a_call_are_the_same() {
    let mut call = OpCall::new(ops::aclnnAbs);
    let t = TensorDesc::contiguous(0x1000, DataType::F16, &[4, 5, 6]);
    call.push_tensor(Some(t)).push_tensor(Some(t));
    let (mut body, mut from_body, mut from_call) = (Vec::new(), Vec::new(), Vec::new());
    encode_op(&call, &mut body).unwrap();
    encode_op_record(9, &body, &mut from_body).unwrap();
    encode(&Record::Op { stream: 9 }, Some(&call), &mut from_call).unwrap();
    assert_eq!(from_body, from_call);
    assert_eq!(from_call.len(), 5 + 2 + 2 * 22);
    let (mut from_body, mut from_call) = (Vec::new(), Vec::new());
    encode_answered_op(9, REPLY, &body, &mut from_body).unwrap();
    encode(&Record::OpAnswered { stream: 9, reply: REPLY }, Some(&call), &mut from_call).unwrap();
    assert_eq!(from_body, from_call);
    assert!(encode_op_record(9, &[0; crate::op::OP_BYTES_MAX + 1], &mut from_body).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]
    #[test]
    fn records_survive(source in prop::collection::vec(any::<u8>(), 0..600)) {
        check_round_trip(&source);
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        check_decode(&bytes);
    }

    #[test]
    fn damaged_records_never_panic(
        source in prop::collection::vec(any::<u8>(), 0..600),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
    ) {
        let mut bytes = crate::testing::encoded_record(&source);
        for (at, byte) in damage {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        check_decode(&bytes);
    }
}
