-- What every test's database starts from: a shop with things worth hiding.
CREATE SCHEMA shop;
CREATE TABLE shop.customers (
    id integer PRIMARY KEY,
    name text NOT NULL,
    email text NOT NULL,
    card_number varchar(24),
    profile jsonb,
    tags text[],
    token uuid,
    born date,
    balance numeric(10, 2)
);
INSERT INTO shop.customers VALUES
    (1, 'Ada',   'ada@example.com',   '4111111111111111', '{"phone": "+1 202 555 0101"}', '{vip,uk}', 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11', '1815-12-10', 12.50),
    (2, 'Grace', 'grace@example.org', '5500005555555559', '{"phone": "+1 202 555 0102"}', '{navy}',   'b0eebc99-9c0b-4ef8-bb6d-6bb9bd380a12', '1906-12-09', 99.00),
    (3, 'Edsger','edsger@example.net', NULL,              NULL,                           NULL,       NULL,                                   NULL,         NULL);
CREATE TABLE shop.orders (
    id integer PRIMARY KEY,
    customer integer NOT NULL REFERENCES shop.customers,
    total numeric(10, 2) NOT NULL,
    note text
);
INSERT INTO shop.orders VALUES
    (1, 1, 10.00, 'leave at the door'), (2, 1, 20.50, NULL), (3, 2, 7.25, 'call first');
CREATE VIEW shop.contacts AS SELECT id, name AS who, email AS address FROM shop.customers;
CREATE FUNCTION shop.rename(who integer, called text) RETURNS void LANGUAGE sql
    AS 'UPDATE shop.customers SET name = called WHERE id = who';
CREATE FUNCTION shop.complain(message text) RETURNS void LANGUAGE plpgsql
    AS $$ BEGIN RAISE NOTICE '%', message; RAISE EXCEPTION '%', message; END $$;
CREATE TABLE plain (id integer PRIMARY KEY, word text);
INSERT INTO plain SELECT n, 'word ' || n FROM generate_series(1, 1000) AS n;
