module example.com/runtime_facts

go 1.19
