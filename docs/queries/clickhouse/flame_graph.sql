-- The flame graph of a service: a row for each box, parents before children,
-- with its path from the outermost function, what it took itself and with all
-- above it. ClickHouse; for s3() in place of file() see top_functions.sql.
SELECT
    arraySlice(functions, 1, depth) AS path,
    depth,
    sumIf(value, depth = length(functions)) AS self_ns,
    sum(value) AS total_ns
FROM file({store:String}, 'Parquet')
ARRAY JOIN arrayEnumerate(functions) AS depth
WHERE toDate(date) BETWEEN {first_day:Date} AND {last_day:Date}
  AND service_name = {service:String}
  AND event = 'cpu'
GROUP BY path, depth
ORDER BY path
