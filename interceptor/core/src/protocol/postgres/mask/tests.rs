//! Values of every kind, in every form, by column and by pattern.

use std::sync::Arc;

use bytes::{BufMut, BytesMut};

use super::RowMask;
use crate::{
    mask::{ColumnMask, MaskKind, MaskPlan, Pattern, PatternMask, Patterns},
    operation::{Description, Resource, ResourceKind, Touch},
};

fn plan(strict: bool) -> MaskPlan {
    let rule: Arc<str> = Arc::from("r");
    let tables = ["*.customers".to_owned()];
    MaskPlan {
        body: Arc::default(),
        headers: Vec::new(),
        columns: vec![ColumnMask::new(
            &rule,
            &tables,
            "email",
            MaskKind::Email,
            strict,
        )],
        patterns: Patterns::new(vec![PatternMask {
            rule,
            pattern: Pattern::Card,
            with: MaskKind::Last4,
        }]),
    }
}

fn description(table: &str) -> Description {
    let resource = Resource {
        kind: ResourceKind::Table,
        namespace: None,
        name: table.into(),
        touch: Touch::Read,
    };
    Description {
        resources: [resource].into(),
        ..Description::default()
    }
}

fn layout(columns: &[(&str, u32, u32, i16)]) -> BytesMut {
    let mut out = BytesMut::new();
    out.put_i16(columns.len() as i16);
    for (name, table, type_oid, format) in columns {
        out.put_slice(name.as_bytes());
        out.put_u8(0);
        out.put_u32(*table);
        out.put_i16(i16::from(*table != 0));
        out.put_u32(*type_oid);
        out.put_slice(&[0; 6]);
        out.put_i16(*format);
    }
    out
}

/// One expression column of a type, masked as part of an operation on `customers`.
fn expression(name: &str, type_oid: u32, format: i16, value: &[u8]) -> Option<Vec<u8>> {
    let mask = RowMask::new(
        &layout(&[(name, 0, type_oid, format)]),
        &plan(false),
        None,
        &description("customers"),
    )
    .unwrap();
    let mut row = BytesMut::new();
    row.put_i16(1);
    super::value::put(&mut row, Some(value));
    let mut out = BytesMut::new();
    mask.apply(&row, &mut out).unwrap();
    let mut reader = crate::protocol::postgres::wire::Reader::new(&out, "DataRow");
    reader.count().unwrap();
    reader.value().unwrap().map(<[u8]>::to_vec)
}

#[test]
fn values_of_every_kind_are_masked_in_a_form_that_clients_can_read() {
    let email = b"ada@example.com";
    let masked = |bytes: &[u8]| Some(bytes.to_vec());
    for format in [0, 1] {
        assert_eq!(
            expression("email", 25, format, email),
            masked(b"a***@example.com")
        );
        assert_eq!(
            expression("email", 114, format, b"\"ada@example.com\""),
            masked(b"\"a***@example.com\"")
        );
        assert_eq!(expression("email", 20, format, b"12345678"), None);
        assert_eq!(expression("email", 17, format, email), None);
        assert_eq!(
            expression("whole", 2249, format, b"(1,ada@example.com)"),
            None
        );
    }
    assert_eq!(
        expression("email", 3802, 1, b"\x01\"ada@example.com\""),
        masked(b"\x01\"a***@example.com\"")
    );
    assert_eq!(
        expression("email", 1009, 0, b"{ada@example.com,NULL,\"b\\\"@c.de\"}"),
        masked(b"{\"a***@example.com\",NULL,\"b***@c.de\"}")
    );
    assert_eq!(
        expression("j", 114, 0, b"{\"email\":\"ada@example.com\",\"n\":1}"),
        masked(b"{\"email\":\"a***@example.com\",\"n\":1}")
    );
    assert_eq!(
        expression("j", 3802, 0, b"{\"n\":\"4111\\u003111111111111\"}"),
        masked(b"{\"n\":\"************1111\"}")
    );
    assert_eq!(
        expression("t", 25, 0, b"card 4111111111111111"),
        masked(b"card ************1111")
    );
    assert_eq!(expression("n", 23, 0, b"42"), masked(b"42"));
    assert_eq!(
        expression("b", 17, 0, b"\\x34313131313131313131313131313131"),
        None
    );
}

#[test]
fn binary_arrays_keep_their_shape() {
    let mut value = BytesMut::new();
    value.put_i32(1);
    value.put_i32(0);
    value.put_u32(25);
    value.put_i32(2);
    value.put_i32(1);
    super::value::put(&mut value, Some(b"x"));
    super::value::put(&mut value, Some(b"4111111111111111"));
    let masked = expression("a", 1009, 1, &value).unwrap();
    assert!(
        masked.ends_with(b"************1111") && masked.starts_with(&value[..20]),
        "{masked:?}"
    );
    assert_eq!(expression("a", 1009, 1, b"\0\0"), None);
}

#[test]
fn what_comes_from_nobody_knows_where_becomes_null() {
    let mask = RowMask::new(
        &layout(&[("x", 99_999, 25, 0)]),
        &plan(false),
        None,
        &description("t"),
    )
    .unwrap();
    assert!(mask.has_unknown_origin() && !mask.is_noop());
    let system = RowMask::new(
        &layout(&[("x", 1_259, 23, 0)]),
        &plan(false),
        None,
        &description("t"),
    )
    .unwrap();
    assert!(system.is_noop());
}

#[test]
fn strict_rules_refuse_expressions_over_their_tables() {
    let of = |table: &str| {
        RowMask::new(
            &layout(&[("lower", 0, 25, 0)]),
            &plan(true),
            None,
            &description(table),
        )
        .unwrap()
    };
    assert!(of("customers").refusal().unwrap().contains("\"lower\""));
    assert_eq!(of("orders").refusal(), None);
}

#[test]
fn details_that_quote_rows_are_masked() {
    let payload = b"SERROR\0DFailing row contains (1, ada@example.com).\0\0";
    assert_eq!(
        super::mask_fields(payload, &plan(false)).unwrap(),
        b"SERROR\0DFailing row contains ([redacted]).\0\0"
    );
    let payload = b"DKey (email)=(ada@example.com) already exists.\0\0";
    assert_eq!(
        super::mask_fields(payload, &plan(false)).unwrap(),
        b"DKey (email)=([redacted]) already exists.\0\0"
    );
    assert_eq!(
        super::mask_fields(b"DKey (id)=(1) already exists.\0\0", &plan(false)),
        None
    );
}
