"""Runs queries of docs/queries with the engine that they are for, and prints
the rows of each as JSON: query.py ENGINE STORE FILE... NAME=VALUE..."""

import json
import sys

engine, store, *rest = sys.argv[1:]
settings = dict(word.split("=", 1) for word in rest if "=" in word)
queries = []
for path in rest:
    if "=" not in path:
        with open(path) as file:
            queries.append(file.read())


def quoted(text):
    return "'" + text.replace("\\", "\\\\").replace("'", "''") + "'"


if engine == "duckdb":
    import duckdb

    connection = duckdb.connect()
    settings["store"] = store + "/v1/raw/**/*.parquet"
    for name, value in settings.items():
        connection.execute(f"SET VARIABLE {name} = {quoted(value)}")
    answers = [connection.execute(sql).fetchall() for sql in queries]
elif engine == "clickhouse":
    from chdb import session

    connection = session.Session()
    settings.setdefault("store", store + "/v1/raw/**/*.parquet")
    for name, value in settings.items():
        connection.query(f"SET param_{name} = {quoted(value)}")
    # Large integers as numbers: Python's are large enough.
    connection.query("SET output_format_json_quote_64bit_integers = 0")
    texts = [str(connection.query(sql, "JSONCompactEachRow")) for sql in queries]
    answers = [[json.loads(line) for line in text.splitlines()] for text in texts]
elif engine == "spark":
    from pyspark.sql import SparkSession

    builder = SparkSession.builder.master("local[2]").config("spark.ui.enabled", "false")
    builder = builder.config("spark.sql.shuffle.partitions", "1")
    spark = builder.config("spark.driver.bindAddress", "127.0.0.1").getOrCreate()
    spark.sparkContext.setLogLevel("ERROR")
    spark.read.parquet(store + "/v1/raw").createOrReplaceTempView("profiles")
    answers = [
        [list(row) for row in spark.sql(sql, args=settings).collect()] for sql in queries
    ]
    spark.stop()
else:
    sys.exit(f"no engine {engine}")
json.dump(answers, sys.stdout, default=float)
